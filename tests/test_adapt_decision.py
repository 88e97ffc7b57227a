"""Whether to fine-tune: each refusal by name, the file read back, and the verifier against falsified packs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from healthy_pack import MODEL, REVISION, RISKS, edit, healthy_folder, rewrite_json
from safetensors.torch import save_file
from typer.testing import CliRunner

from labkit.adaptation.decision import AdaptationDecision
from labkit.cli import app
from labkit.decisions.adaptation import decide_adaptation, write_decision
from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS
from labkit.evaluation.overlap import find_overlap, read_training, similarity
from labkit.evaluation.records import RESULT_COLUMNS
from labkit.evidence import Pack, csv_text, read_json, sha256_of
from labkit.verification import Verdict, verify

IDS = tuple(f"{risk}_{number:03}" for number, risk in enumerate(RISKS * 3))
FORMAT, GROUNDING = ("format_000", "format_005"), ("grounding_001",)
FAILING = {*FORMAT, *GROUNDING}


def run_of(folder: Path, failing, repeats: int = 1, failing_once=()) -> Path:
    """A run of fifteen cases, three of each risk, in which those of `failing` fail in every repeat."""
    cases, results = [], []
    for case_id in IDS:
        judged = {"case_id": case_id, "risk": case_id.split("_")[0], "check": "contains_all", "expected": "x"}
        asked = {
            "prompt": f"What does the shop say about matter {case_id} today?",
            "expected_behavior": "a right answer",
        }
        cases.append(dict.fromkeys(COLUMNS, "") | judged | asked)
        for repeat in range(1, repeats + 1):
            failed = case_id in failing or (case_id in failing_once and repeat == 1)
            row = dict.fromkeys(RESULT_COLUMNS, "1") | {key: judged[key] for key in ("case_id", "risk", "check")}
            row |= {"output": "y", "pass": str(not failed).lower(), "notes": "looked for x", "repeat": str(repeat)}
            results.append(row | {"model": MODEL, "revision": REVISION})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval_cases.csv").write_text(csv_text(cases, COLUMNS))
    (folder / "eval_results.csv").write_text(csv_text(results, RESULT_COLUMNS))
    return folder


def chats_of(path: Path, prompts) -> Path:
    said = ([{"role": "user", "content": text}, {"role": "assistant", "content": "x"}] for text in prompts)
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """What `decide_adaptation` needs for prepare_lora: three failures that prompt, schema and documents leave."""
    folder = tmp_path_factory.mktemp("runs")
    base = run_of(folder / "base", FAILING)
    tried = {
        "prompt": run_of(folder / "prompt", FAILING - {"grounding_001"} | {"safety_002"}),
        "schema": run_of(folder / "schema", FAILING),
        "quantization": run_of(folder / "nf4", FAILING | {"regression_004"}),
    }
    train = chats_of(folder / "train.jsonl", [f"Make return label number {n} for parcel {n * 7}" for n in range(60)])
    return {"baseline": base, "tried": tried, "train": train, "owner": "Data team", "privacy": "internal"}


def decided(runs, **changes) -> AdaptationDecision:
    return decide_adaptation(**runs | changes)


def names(decision: AdaptationDecision) -> list[str]:
    return [refusal.name for refusal in decision.refusals]


def test_failures_that_no_cheaper_lever_fixes_prepare_lora(runs):
    found = decided(runs)
    assert (found.decision, found.refusals) == ("prepare_lora", ())
    assert [failure.case_id for failure in found.failures] == [*sorted(FORMAT)[:1], "grounding_001", "format_005"]
    prompt, quantization = found.run("prompt"), found.run("quantization")
    assert (prompt.before, prompt.after, prompt.fixed, prompt.broken) == (12, 12, ("grounding_001",), ("safety_002",))
    assert quantization.regressions == ("regression_004",)
    assert "2 of 3 repeated failures" in found.reason
    assert "labkit lora" in found.next_action


def test_a_failure_must_repeat(runs, tmp_path):
    base = run_of(tmp_path / "base", ["format_000"], repeats=3, failing_once=["format_005"])
    tried = {lever: run_of(tmp_path / lever, ["format_000"], repeats=3) for lever in ("prompt", "schema")}
    assert [f.case_id for f in decided(runs, baseline=base, tried=tried).failures] == ["format_000"]


def test_each_refusal_has_its_name_and_remedy(runs, tmp_path):
    base, tried = runs["baseline"], runs["tried"]
    passing = run_of(tmp_path / "passing", ())
    seen = chats_of(tmp_path / "seen.jsonl", [f"chat {n}" for n in range(60)] + [asked(base, 0).upper() + "!"])
    nearly = chats_of(tmp_path / "nearly.jsonl", [f"chat {n}" for n in range(60)] + [asked(base, 3) + " Please"])
    few = chats_of(tmp_path / "few.jsonl", ["one chat"] * 80)
    expected = [
        ({"baseline": passing, "tried": {}}, "fine-tuning without a failing baseline", "add cases"),
        ({"tried": tried | {"rag": passing}}, "a cheaper lever fixes it", "use prompt and rag"),
        ({"tried": {"prompt": tried["prompt"]}}, "a cheaper lever was not tried", "--tried schema=PACK"),
        ({"tried": {}}, "a cheaper lever was not tried", "--tried prompt=PACK"),
        ({"tried": {"quantization": passing}}, "a cheaper lever was not tried", "--tried prompt=PACK"),
        ({"train": few}, "too few training examples", "all different"),
        ({"train": seen}, "train and eval overlap", "take those chats out"),
        ({"train": nearly}, "train and eval overlap", "take those chats out"),
        ({"owner": " "}, "no owner", "--owner"),
        ({"privacy": ""}, "no privacy class", "public, internal, personal"),
        ({"privacy": "personal"}, "personal data without consent", "--consent"),
    ]
    for changes, name, remedy in expected:
        found = decided(runs, **changes)
        assert (found.decision, names(found)) == ("no_lora", [name])
        assert remedy in found.next_action
        assert found.reason.startswith(name)
    agreed = decided(runs, privacy="personal", consent="customers, form 12 of 2026-01-05")
    assert agreed.decision == "prepare_lora"
    assert (decided(runs, train=seen).exact_overlap, decided(runs, train=nearly).near_overlap) == (1, 1)


def asked(folder: Path, number: int) -> str:
    return f"What does the shop say about matter {IDS[number]} today?"


def test_full_fine_tuning_is_measured_beside_the_adapter_and_refused_where_it_forgets_more(runs, tmp_path):
    adapter = run_of(tmp_path / "lora", ["regression_004"])
    worse = run_of(tmp_path / "full", ["regression_004", "regression_009"])
    unmeasured = decided(runs, ask="full", adapter_run=adapter)
    assert unmeasured.decision == "full_finetune_not_allowed"
    assert "--full-run" in unmeasured.next_action
    refused = decided(runs, ask="full", adapter_run=adapter, full_run=worse)
    assert (refused.decision, names(refused)) == ("full_finetune_not_allowed", ["full fine-tuning forgets more"])
    assert "2 regression cases, the adapter 1" in refused.reason
    equal = decided(runs, ask="full", adapter_run=adapter, full_run=adapter)
    assert equal.decision == "prepare_lora"
    assert "smaller change" in equal.reason
    assert decided(runs, adapter_run=adapter, full_run=worse).decision == "prepare_lora"  # lora was asked for


def test_the_file_is_read_back_into_the_same_facts(runs):
    found = decided(runs, owner="Ann: sales, Kyoto", split="by customer")
    assert AdaptationDecision.from_markdown(found.as_markdown()) == found
    unnamed = decided(runs, owner="", privacy="")
    assert AdaptationDecision.from_markdown(unnamed.as_markdown()) == unnamed
    assert "- Owner: _____" in unnamed.as_markdown()
    for name, said in (("Cases", "many"), ("Near overlap", "")):
        with pytest.raises(LabError, match=f"{name} is"):
            AdaptationDecision.from_markdown(found.as_markdown().replace(f"- {name}: ", f"- {name}: {said or 'x'}"))
    with pytest.raises(LabError, match="no line Owner"):
        AdaptationDecision.from_markdown(found.as_markdown().replace("- Owner", "- Keeper"))
    with pytest.raises(LabError, match="no table Levers tried"):
        AdaptationDecision.from_markdown(found.as_markdown().replace("## Levers tried", "## Levers"))
    odd = replace(found, failures=(replace(found.failures[0], case_id="a, b"),))
    with pytest.raises(LabError, match="cannot stand in a list"):
        odd.as_markdown()


def test_bad_input_is_named(runs, tmp_path):
    for changes, said in (
        ({"tried": {"magic": runs["baseline"]}}, "no lever called 'magic'"),
        ({"ask": "dpo"}, "--ask dpo"),
        ({"privacy": "secret"}, "--privacy secret"),
        ({"cases": tmp_path / "none.csv"}, "prompts is missing"),
        ({"train": tmp_path / "none.jsonl"}, r"none\.jsonl is missing"),
    ):
        with pytest.raises(LabError, match=said):
            decided(runs, **changes)
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    with pytest.raises(LabError, match="no question of a user"):
        read_training(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text(
        '{"messages": []}\nnonsense\n'.replace("[]", '[{"role": "user", "content": "a"}]')
    )
    with pytest.raises(LabError, match="this is not a chat") as caught:
        read_training(tmp_path / "bad.jsonl")
    assert "line 2" in caught.value.where


def test_overlap_counts_words_in_any_script():
    assert similarity("Where is my parcel today?", "where is my PARCEL today") == 1
    near = list(
        find_overlap(
            ["返品の期限を三つの箇条書きで教えてください"],
            ["返品の期限を三つの箇条書きで教えてくださいね", "在庫はありますか"],
        )
    )
    assert [match.evaluation[:2] for match in near if not match.exact] == ["返品"]
    assert similarity("返品の期限は何日ですか", "在庫はどこにありますか") == 0


# The verifier.


@pytest.fixture(scope="module")
def decided_pack(tmp_path_factory, runs) -> Path:
    """The healthy pack with its own evaluation decided from, an adapter, and the run after it."""
    folder = tmp_path_factory.mktemp("decided") / "local_cpu"
    pack = Pack(Path(shutil.copytree(healthy_folder(tmp_path_factory), folder)), "local_cpu")
    after = tmp_path_factory.mktemp("after") / "lora"
    after.mkdir()
    text = (folder / "eval_results.csv").read_text()
    rows = [line.replace(",false,", ",true,") if line.startswith("safety_007") else line for line in text.splitlines()]
    rows = [line.replace(",true,", ",false,") if line.startswith("format_005") else line for line in rows]
    (after / "eval_results.csv").write_text("\n".join(rows) + "\n")
    plan = {"baseline": folder, "tried": {"prompt": folder}, "adapter_run": after}
    plan["cases"] = runs["baseline"] / "eval_cases.csv"  # the healthy pack's name a check that only its rows know
    write_decision(pack, decided(runs, **plan), folder, after)
    write_adapter(pack)
    return folder


def write_adapter(pack: Pack, base_revision: str = REVISION, b: float = 0.5) -> None:
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    matrices = {f"{layer}.lora_A.weight": torch.ones(4, 16), f"{layer}.lora_B.weight": torch.full((16, 4), b)}
    (pack.folder / "adapter").mkdir(exist_ok=True)
    save_file(matrices, pack.folder / "adapter" / "adapter_model.safetensors")
    pack.record("adapter/adapter_model.safetensors", "13.6")
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    pack.write_json("adapter/adapter_config.json", config, "13.6")
    pack.write_json("adapter/card.json", {"base_model": MODEL, "base_revision": base_revision}, "13.6")


@pytest.fixture
def pack(decided_pack, tmp_path) -> Path:
    return Path(shutil.copytree(decided_pack, tmp_path / "local_cpu"))


def found(folder: Path, name: str, whole: bool = False):
    """The finding `name`; of the lesson alone, which loads no checkpoint, unless it needs the `whole` pack."""
    return next(f for f in verify(folder, None if whole else "13.6").findings if f.name == name)


def contradicted(folder: Path, name: str, said: str) -> None:
    finding = found(folder, name)
    assert finding.verdict is Verdict.CONTRADICTED, finding
    assert said in finding.detail


def test_a_good_pack_is_supported_and_none_of_it_is_required(pack, tmp_path_factory):
    verification = verify(pack)
    assert verification.exit_code == 0, [f for f in verification.findings if f.verdict is not Verdict.SUPPORTED]
    lesson = {f.name: f for f in verification.findings if f.lesson == "13.6"}
    assert set(lesson) == {
        "lora_decision.md",
        "adapter/",
        "before_after.csv",
        "adaptation rests on the evaluation",
        "before and after agree with the decision",
        "adapter of the decided model",
        "decision rests on the levers' runs",
    }
    assert lesson["lora_decision.md"].detail.startswith("prepare_lora: 1 repeated failures of 10 cases")
    assert lesson["before_after.csv"].detail == "1 fixed, 1 broken of 10; regression cases lost: 0"
    assert lesson["adapter/"].detail.startswith("rank 4 on 1 projections, 128 numbers")
    assert verify(healthy_folder(tmp_path_factory), "13.6").findings == ()


def test_the_adapter_of_the_base_that_the_decided_model_was_made_from_is_supported(pack):
    rule, decision = "adapter of the decided model", "model_decision.md"
    base, weights = read_json(pack / "adapter" / "card.json"), pack / "adapter" / "adapter_model.safetensors"
    model, revision = base["base_model"], base["base_revision"]
    before = f"- Model: {model}\n- Revision: {revision}\n"
    edit(pack, decision, before, "- Model: merged\n- Revision: 0123456789ab\n")
    assert found(pack, rule).verdict is Verdict.NOT_YET
    made_from = f"{model} at {revision}+{sha256_of(weights)[:12]}"
    edit(pack, decision, "- Revision: 0123456789ab\n", f"- Revision: 0123456789ab\n- Made from: {made_from}\n")
    assert (found(pack, rule).verdict, found(pack, rule).detail) == (
        Verdict.SUPPORTED,
        f"merged was made from {made_from}",
    )
    edit(pack, decision, made_from, f"{model} at {revision}+another")
    assert found(pack, rule).verdict is Verdict.NOT_YET
    assert "says merged at 0123456789ab" in found(pack, rule).detail


def test_missing_parts_are_not_yet(pack):
    (pack / "before_after.csv").unlink()
    (pack / "adapter" / "card.json").unlink()
    assert found(pack, "before and after agree with the decision").verdict is Verdict.NOT_YET
    assert found(pack, "adapter/").verdict is Verdict.NOT_YET
    edit(pack, "lora_decision.md", "- Owner: Data team", "- Owner: _____")
    assert (found(pack, "lora_decision.md").verdict, "Owner" in found(pack, "lora_decision.md").detail) == (
        Verdict.NOT_YET,
        True,
    )
    (pack / "lora_decision.md").unlink()
    assert {f.name for f in verify(pack, "13.6").findings} == {"adapter/", "adapter of the decided model"}


def test_fine_tuning_without_a_failing_baseline_is_contradicted_by_name(pack):
    overclaim = "fine-tuning without a failing baseline"
    edit(pack, "lora_decision.md", "| safety_007 | safety | contains_all |\n", "")
    edit(pack, "lora_decision.md", "- Repeated failures: 1", "- Repeated failures: 0")
    contradicted(pack, "lora_decision.md", overclaim)


def test_a_failing_baseline_that_was_made_up_is_contradicted_by_name(pack):
    text = (pack / "eval_results.csv").read_text()
    rows = [line.replace(",false,", ",true,") if line.startswith("safety_007") else line for line in text.splitlines()]
    (pack / "eval_results.csv").write_text("\n".join(rows) + "\n")
    record_before(pack, "eval_results.csv", "lora_decision.md")
    contradicted(pack, "adaptation rests on the evaluation", "fine-tuning without a failing baseline")
    contradicted(pack, "lora_decision.md", "eval_results.csv has 0: safety_007")


def record_before(folder: Path, name: str, later: str) -> None:
    """Record the forged `name`, and `later` after it, as a thorough forger would."""
    for file in (name, later):
        Pack(folder, "local_cpu").record(file, "13.6")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["written"] = "2026-01-01T00:00:00+00:00"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_evaluation_made_after_the_decision_is_no_lie(pack):
    edit(
        pack,
        "eval_results.csv",
        "safety_007,safety,contains_all,50.0,12,4,y,false",
        "safety_007,safety,contains_all,50.0,12,4,x,true",
    )
    manifest = json.loads((pack / "manifest.json").read_text())
    manifest["files"]["lora_decision.md"]["written"] = "2026-01-01T00:00:00+00:00"
    (pack / "manifest.json").write_text(json.dumps(manifest))
    finding = found(pack, "adaptation rests on the evaluation")
    assert (finding.verdict, "made again" in finding.detail) == (Verdict.NOT_YET, True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("- Decision: prepare_lora", "- Decision: no_lora", "its own facts say prepare_lora"),
        ("- Exact overlap: 0", "- Exact overlap: 3", "train and eval overlap"),
        ("- Different examples: 60", "- Different examples: 6", "too few training examples"),
        ("- Privacy: internal", "- Privacy: personal", "personal data without consent"),
        ("| prompt | 9 | 9 | 10 | none | none | none |\n", "", "a cheaper lever was not tried"),
        ("| prompt | 9 | 9 | 10 |", "| prompt | 9 | 10 | 10 |", "do not make 10"),
        ("| lora | 9 | 9 | 10 | safety_007 |", "| lora | 9 | 9 | 12 | safety_007 |", "12 cases"),
        ("| format_005 | none |", "| format_005 | grounding_001 |", "contradict each other"),
    ],
)
def test_a_decision_that_its_own_facts_do_not_make_is_contradicted(pack, old, new, said):
    edit(pack, "lora_decision.md", old, new)
    contradicted(pack, "lora_decision.md", said)


def test_before_and_after_are_recomputed_and_lose_no_more_than_is_said(pack):
    edit(pack, "before_after.csv", "format_005,format,pass,fail,broken", "format_005,format,pass,fail,still passing")
    contradicted(pack, "before_after.csv", "is broken, not still passing")
    edit(pack, "before_after.csv", "fail,still passing", "fail,broken")
    edit(
        pack,
        "before_after.csv",
        "regression_004,regression,pass,pass,still passing",
        "regression_004,regression,pass,fail,broken",
    )
    contradicted(pack, "before_after.csv", "loses regression cases")
    edit(
        pack,
        "before_after.csv",
        "regression_004,regression,pass,fail,broken",
        "regression_004,regression,pass,pass,still passing",
    )
    edit(
        pack,
        "before_after.csv",
        "grounding_001,grounding,pass,pass,still passing",
        "grounding_001,grounding,pass,fail,broken",
    )
    contradicted(pack, "before_after.csv", "differ in grounding_001")


def test_the_adapter_is_trained_safetensors_of_the_decided_revision(pack):
    write_adapter(Pack(pack, "local_cpu"), base_revision="ffffffffffff")
    other = found(pack, "adapter of the decided model")
    assert other.verdict is Verdict.NOT_YET, "an adapter of another model is an exercise, not a lie"
    assert f"{MODEL} at ffffffffffff, model_decision.md says {MODEL} at {REVISION}" in other.detail
    write_adapter(Pack(pack, "local_cpu"), b=0.0)
    assert "never trained" in found(pack, "adapter/").detail
    write_adapter(Pack(pack, "local_cpu"))
    rewrite_json(pack, "adapter/adapter_config.json", r=8)
    contradicted(pack, "adapter/", "says rank 8")
    rewrite_json(pack, "adapter/adapter_config.json", r=4, target_modules=["q_proj", "v_proj"])
    contradicted(pack, "adapter/", "targets")
    (pack / "adapter" / "adapter_model.bin").write_bytes(b"x")
    assert "a pickle can run code" in found(pack, "adapter/").detail
    (pack / "adapter" / "adapter_model.bin").unlink()
    write_adapter(Pack(pack, "local_cpu"))
    (pack / "adapter" / "adapter_model.safetensors").write_bytes(b"\x80\x04K\x01.")
    Pack(pack, "local_cpu").record("adapter", "13.6")
    assert "not readable safetensors" in found(pack, "adapter/").detail


def test_the_command_writes_the_decision_and_says_what_to_do(runs, tmp_path):
    words = ["adapt-decision", runs["baseline"], "--train", runs["train"], "--out", tmp_path / "pack", "--json"]
    words += [word for lever, path in runs["tried"].items() for word in ("--tried", f"{lever}={path}")]
    words += ["--owner", "Data team", "--privacy", "public", "--adapter-run", runs["tried"]["schema"]]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    printed = json.loads(done.stdout)
    assert (printed["decision"], printed["facts"]["privacy"]) == ("prepare_lora", "public")
    assert verify(tmp_path / "pack", "13.6").exit_code in (0, 1)
    assert (tmp_path / "pack" / "before_after.csv").read_text().count("\n") == 16
    plain = CliRunner().invoke(
        app, ["adapt-decision", str(runs["baseline"]), "--train", str(runs["train"]), "--out", str(tmp_path / "pack")]
    )
    assert plain.stdout.startswith("no_lora\nreason: a cheaper lever was not tried")
    assert "also: no owner" in plain.stdout
    for wrong in (["--tried", "prompt"], ["--tried", "rag=a", "--tried", "rag=b"]):
        bad = CliRunner().invoke(app, [*(str(word) for word in words[:4]), *wrong])
        assert isinstance(bad.exception, LabError)
