"""Decisions: the seed's exact output, a rule for every other combination, refusals by name, files that verify."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from labkit import decisions
from labkit.decisions import (
    ALLOWED,
    Project,
    Rejection,
    checkpoint,
    example_project,
    open_weight_route,
    write_decisions,
)
from labkit.errors import LabError
from labkit.evidence import Pack, read_json, read_manifest, sha256_of
from labkit.export.checkpoint import weights_revision
from labkit.verification import Verdict, verify

FILES = ("model_decision.md", "model_runtime_decision.json", "open_llm_runbook.json", "open_weight_route.json")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A stand-in for the embedded model's file: two tensors of 12 and 20 parameters."""
    folder = tmp_path / "models" / "mini-instruct"
    folder.mkdir(parents=True)
    save_file(
        {"a": np.zeros((3, 4), np.float32), "b": np.zeros(20, np.float32)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    monkeypatch.setattr(checkpoint, "MODELS", tmp_path / "models")
    return folder / "model.safetensors"


@pytest.fixture
def pack(tmp_path):
    return Pack(tmp_path / "pack", "local_cpu")


def test_the_seed_project_gives_the_seed_route():
    project = Project("course Q&A assistant", "private_docs", "rented_gpu", True, False, "small")
    assert json.dumps(open_weight_route(project)) == json.dumps(
        {
            "project": "course Q&A assistant",
            "route": {"route": "rented_gpu", "goal": "run a stable API with explicit cost and shutdown"},
            "model_family": {
                "family": "Qwen or Llama family",
                "fit": ["colab", "rented_gpu"],
                "runtime": "Transformers, vLLM, or SGLang",
            },
            "adaptation": "RAG first; LoRA only after fixed eval failures",
            "evidence": [
                "model card and license note",
                "runtime command",
                "first prompt and output",
                "five-case eval table",
                "latency and memory note",
                "shutdown command",
            ],
        }
    )
    assert example_project() == project


@pytest.mark.parametrize(
    ("route", "needs_api", "goal"),
    [
        ("local_cpu", False, "prove the pipeline with a small quantized model"),
        ("local_cpu", True, "keep the API contract for one local client with a small quantized model"),
        ("free_colab", False, "run one notebook experiment and save reset notes"),
        ("free_colab", True, "run one notebook experiment and save reset notes"),
        ("rented_gpu", True, "run a stable API with explicit cost and shutdown"),
        ("rented_gpu", False, "run one bounded GPU job with explicit cost and shutdown"),
    ],
)
def test_the_goal_follows_the_route(route, needs_api, goal):
    project = replace(example_project(route), needs_service_api=needs_api)
    assert open_weight_route(project)["route"] == {"route": route, "goal": goal}


def test_privacy_tuning_and_budget_change_the_plan():
    colab = open_weight_route(example_project("free_colab"))["evidence"]
    assert colab[-2:] == ["reset notes", "note that only invented or public text was uploaded"]
    assert (
        "note of where the data lay"
        in open_weight_route(replace(example_project("local_cpu"), privacy="regulated"))["evidence"][-1]
    )
    tuned = open_weight_route(replace(example_project(), needs_fine_tuning=True))
    assert tuned["adaptation"].startswith("RAG first; then LoRA")
    assert tuned["evidence"][-1] == "before-and-after table on the same cases"
    assert open_weight_route(replace(example_project(), budget_level="medium"))["model_family"]["fit"] == ["rented_gpu"]


def test_every_allowed_combination_is_decided_or_refused_with_a_remedy():
    refused = 0
    for privacy, route, api, tuning, budget in itertools.product(
        ALLOWED["privacy"], ALLOWED["available_route"], (True, False), (True, False), ALLOWED["budget_level"]
    ):
        try:
            plan = open_weight_route(Project("x", privacy, route, api, tuning, budget))
        except LabError:
            refused += 1
            assert (route, budget) == ("rented_gpu", "none") or (route, privacy) == ("free_colab", "regulated")
        else:
            assert all(plan.values())
    assert refused == 24


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("privacy", "secret", "choose one of public, private_docs, regulated"),
        ("available_route", "laptop", "choose one of local_cpu, free_colab, rented_gpu"),
        ("budget_level", "huge", "choose one of none, small, medium"),
        ("budget_level", ["small"], "choose one of none, small, medium"),
        ("needs_service_api", "yes", "choose true or false"),
        ("needs_fine_tuning", 1, "choose true or false"),
        ("task", "  ", "line of text"),
        ("task", 7, "line of text"),
        ("task", "two\nlines", "line of text"),
    ],
)
def test_a_bad_value_names_the_allowed_ones(field, value, said):
    with pytest.raises(LabError, match=said):
        Project(**(asdict(example_project()) | {field: value}))


def test_a_project_file_is_read_back_and_its_errors_are_named(tmp_path):
    path = tmp_path / "project.json"
    path.write_text(decisions.project_text(example_project("local_cpu")))
    assert decisions.load_project(path) == example_project("local_cpu")
    path.write_text('{"task": "x", "colour": "red"}')
    with pytest.raises(LabError, match="missing or unknown fields: available_route, budget_level, colour"):
        decisions.load_project(path)
    path.write_text("not json")
    with pytest.raises(LabError, match="not readable JSON"):
        decisions.load_project(path)
    with pytest.raises(LabError, match="missing"):
        decisions.load_project(tmp_path / "nothing.json")


def test_the_four_files_name_the_embedded_model_by_its_weights(pack, weights):
    write_decisions(pack, example_project("local_cpu"))
    text = pack.path("model_decision.md").read_text()
    assert "- Model: mini-instruct\n" in text
    assert f"- Revision: {sha256_of(weights)[:12]}\n" in text
    assert "- Size: 32 parameters, 0.0 MB of weights\n" in text
    assert "- Licence: Apache License 2.0\n" in text
    assert sha256_of(weights)[:12] == weights_revision(weights.parent)
    lessons = {name: read_manifest(pack.folder)["files"][name]["lesson"] for name in FILES}
    assert lessons == dict(zip(FILES, ("13.3", "13.3", "13.3", "13.5"), strict=True))
    assert read_json(pack.path("open_weight_route.json")) == open_weight_route(example_project("local_cpu"))


def test_rejected_alternatives_cover_licence_memory_and_size(pack, weights):
    write_decisions(pack, example_project("local_cpu"))
    kinds = {rejection.reason.split(":")[0] for rejection in decisions.rejected_in(pack)}
    assert kinds == {"licence", "memory", "size"}


def test_every_route_gets_a_recommendation_and_a_runbook(tmp_path, weights):
    for route in ALLOWED["available_route"]:
        pack = Pack(tmp_path / route, route)
        write_decisions(pack, example_project(route))
        cards = read_json(pack.path("model_runtime_decision.json"))["routes"]
        assert set(cards) == set(ALLOWED["available_route"])
        assert all(set(card) == {"model", "runtime", "reason", "proves", "fallback"} for card in cards.values())
        assert all(all(card.values()) for card in cards.values())
        assert cards[route]["model"] == "mini-instruct"
        runbook = read_json(pack.path("open_llm_runbook.json"))
        assert (runbook["route"], runbook["model"]) == (route, "mini-instruct")
        assert "model_decision.md" in runbook["required_evidence"]


def test_verify_supports_the_files_as_written(pack, weights):
    write_decisions(pack, example_project("local_cpu"))
    found = {finding.name: finding.verdict for finding in verify(pack.folder).artifacts}
    assert {name: found[name] for name in FILES} == dict.fromkeys(FILES, Verdict.SUPPORTED)


def test_a_learners_rejection_stays_through_a_second_run(pack, weights):
    own = Rejection("Codestral 22B", "licence: the text excludes production")
    write_decisions(pack, example_project("local_cpu"), rejected=[own])
    write_decisions(pack, example_project("local_cpu"))
    assert decisions.rejected_in(pack).count(own) == 1


@pytest.mark.parametrize(("name", "reason"), [("a: b", "c"), ("a", "two\nlines"), ("", "c"), ("a", " ")])
def test_a_rejection_that_could_not_be_read_back_is_refused(name, reason):
    with pytest.raises(LabError, match="cannot be written down"):
        Rejection(name, reason)


def test_another_route_than_the_packs_is_refused_and_nothing_is_written(pack, weights):
    with pytest.raises(LabError, match="set available_route to local_cpu"):
        write_decisions(pack, example_project("rented_gpu"))
    assert not pack.path("model_decision.md").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "licence: the Qwen Research License does not allow"),
        ("deepseek-ai/DeepSeek-V4-Flash", r"licence: it was not verified.*\(licence unread\)"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", r"memory: about 16.5 GiB.*Q4_K_M it is 6.2 GiB.*\(no quantization\)"),
        ("cyberagent/calm3-22b-chat", "memory: what it needs could not be computed"),
        ("nobody/nothing", "no model called"),
    ],
)
def test_a_model_that_fails_the_ladder_is_refused_by_name(pack, model, said):
    with pytest.raises(LabError, match=said):
        write_decisions(pack, example_project("local_cpu"), model=model)
    assert not pack.path("model_decision.md").exists()


def test_a_quantized_model_is_decided_where_it_fits_and_no_case_speaks_for_a_larger_one(tmp_path):
    pack = Pack(tmp_path / "rented", "rented_gpu")
    large = {"model": "Qwen/Qwen2.5-32B-Instruct", "quant": "awq"}
    with pytest.raises(LabError, match=r"size: 32.764 B parameters are more than 15 B.*\(size alone\)"):
        write_decisions(pack, example_project(), **large)
    with pytest.raises(LabError, match=r"no eval_results\.csv shows"):
        write_decisions(pack, example_project(), **large, failed_cases=["format_01"])
    pack.write_text("eval_results.csv", "case_id,pass\nformat_01,true\nsafety_02,false\n", "13.4")
    with pytest.raises(LabError, match="does not show format_01 as failed"):
        write_decisions(pack, example_project(), **large, failed_cases=["format_01", "safety_02"])
    assert not pack.path("model_decision.md").exists()
    write_decisions(pack, example_project(), **large, failed_cases=["safety_02"])
    text = pack.path("model_decision.md").read_text()
    assert "- Format: AWQ\n" in text
    assert "- Cases that a smaller model failed: safety_02\n" in text
    write_decisions(pack, replace(example_project(), budget_level="medium"), **large)  # a budget for such cards


def test_a_gguf_format_is_run_by_llama_cpp(pack):
    write_decisions(pack, example_project("local_cpu"), model="Qwen3-4B", quant="Q4_K_M", failed_cases=())
    assert read_json(pack.path("open_llm_runbook.json"))["runtime"]["choice"] == "llama.cpp"


def test_research_may_use_what_production_may_not(tmp_path):
    pack, project = Pack(tmp_path / "rented", "rented_gpu"), example_project()
    with pytest.raises(LabError, match="does not allow production use"):
        write_decisions(pack, project, model="Qwen2.5-3B-Instruct")
    write_decisions(pack, replace(project, use="research"), model="Qwen2.5-3B-Instruct")


def test_a_public_service_without_auth_is_refused_by_name():
    with pytest.raises(LabError, match="public without auth"):
        replace(example_project(), exposure="public")
    assert replace(example_project(), exposure="public", auth="api_key").auth == "api_key"


def test_each_anti_pattern_is_refused_by_its_name():
    rows = {row["name"]: row["refused because"] for row in decisions.anti_pattern_rows(example_project("local_cpu"))}
    assert list(rows) == ["licence unread", "no quantization", "size alone", "public without auth"]
    assert all(name in reason for name, reason in rows.items())


def test_the_runtime_decision_weighs_every_runtime_and_keeps_ladder_refusals_signal_and_fallback(pack, weights):
    write_decisions(pack, example_project("local_cpu"))
    decision = read_json(pack.path("model_runtime_decision.json"))
    assert [rung["step"] for rung in decision["ladder"]] == ["task", "licence", "hardware", "runtime", "evidence"]
    verdicts = {row["runtime"]: row for row in decision["runtimes"]}
    assert verdicts["Transformers"]["verdict"] == "chosen"
    assert (verdicts["TGI"]["verdict"], verdicts["TGI"]["status"]) == ("refused", "maintenance")
    assert "maintenance mode" in verdicts["TGI"]["reason"]
    assert "NVIDIA GPU" in verdicts["vLLM"]["reason"]
    assert verdicts["cloud API"]["verdict"] == "refused"  # the documents are private
    assert all(row["reason"] for row in verdicts.values())
    assert len(decision["rejected"]) >= 3
    assert decision["upgrade_signal"]
    assert decision["fallback"]


def test_a_runtime_that_no_row_supports_is_verify():
    public = replace(example_project(), privacy="public")
    rows = {row["runtime"]: row for row in decisions.runtime_rows(public, "Qwen/Qwen3.5-9B")}
    assert rows["Ollama"]["verdict"] == "verify"
    assert rows["vLLM"]["verdict"] == "chosen"
    assert rows["cloud API"]["verdict"] == "possible"


def test_a_project_may_leave_out_what_has_a_default(tmp_path):
    short = {
        name: value for name, value in asdict(example_project()).items() if name not in ("use", "auth", "exposure")
    }
    path = tmp_path / "project.json"
    path.write_text(json.dumps(short))
    assert decisions.load_project(path) == example_project()


def test_a_hub_model_keeps_a_placeholder_until_its_commit_is_known(tmp_path):
    pack = Pack(tmp_path / "rented", "rented_gpu")
    write_decisions(pack, example_project(), model="Qwen2.5-7B-Instruct")
    assert "- Revision: _____" in pack.path("model_decision.md").read_text()
    assert read_json(pack.path("open_llm_runbook.json"))["runtime"]["choice"] == "vLLM"
    write_decisions(pack, example_project(), model="Qwen2.5-7B-Instruct", revision="a09a35458c70")
    assert "- Revision: a09a35458c70\n" in pack.path("model_decision.md").read_text()


def test_a_rejected_family_is_added_once_and_keeps_the_decision(pack, weights):
    project = example_project("local_cpu")
    decisions.record_rejection(pack, project, decisions.reject("mistralai/Codestral-22B-v0.1", "local_cpu"))
    before = pack.path("model_decision.md").read_text()
    again = decisions.reject("Codestral-22B-v0.1", "local_cpu", "it writes code, and the task is answers")
    decisions.record_rejection(pack, project, again)
    text = pack.path("model_decision.md").read_text()
    assert "Mistral AI Non-Production License" in before
    assert text.count("- Mistral family (Codestral-22B-v0.1): ") == 1
    assert "it writes code" in text
    assert "- Model: mini-instruct\n" in text
    with pytest.raises(LabError, match="give a reason of your own"):
        decisions.reject("Qwen/Qwen2.5-0.5B-Instruct", "local_cpu")


def test_the_pack_remembers_its_project(pack, weights):
    assert decisions.project_of(pack) == example_project("local_cpu")
    mine = replace(example_project("local_cpu"), task="menu translator", needs_service_api=True)
    write_decisions(pack, mine)
    assert decisions.project_of(pack) == mine
    pack.write_json("model_runtime_decision.json", {"project": []}, "13.3")
    with pytest.raises(LabError, match="not an object"):
        decisions.project_of(pack)


def test_three_runs_side_by_side_and_a_refused_one_says_why():
    rows = {row["route"]: row for row in decisions.compare_routes(example_project())}
    assert len({row["goal"] for row in rows.values()}) == 3
    poor = {
        row["route"]: row
        for row in decisions.compare_routes(replace(example_project("local_cpu"), budget_level="none"))
    }
    assert poor["rented_gpu"]["goal"].startswith("refused: a rented GPU costs money")


def test_the_ladder_answers_each_rung_and_the_refusals_are_tabled(weights):
    rows = decisions.ladder_rows(example_project("rented_gpu"), "Qwen/Qwen2.5-7B-Instruct")
    assert [row["step"] for row in rows] == ["task", "licence", "hardware", "runtime", "evidence"]
    assert "GiB" in rows[2]["answer"]
    assert "vLLM" in rows[3]["answer"]
    assert all(row["answer"] for row in decisions.ladder_rows(example_project("local_cpu")))
    table = decisions.refusal_rows(["Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen3-0.6B"], "local_cpu")
    assert [row["verdict"] for row in table] == ["refused", "possible"]


def test_missing_and_broken_weights_are_named(tmp_path, pack, weights):
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(LabError, match="not a safetensors file"):
        write_decisions(pack, example_project("local_cpu"))
    weights.unlink()
    with pytest.raises(LabError, match="holds no safetensors file"):
        write_decisions(pack, example_project("local_cpu"))


def test_the_embedded_model_is_measured_in_two_formats():
    from labkit.decisions.measured import compare_dtypes

    wide, narrow = compare_dtypes(repeats=1, max_tokens=4)
    assert (wide["dtype"], narrow["dtype"]) == ("float32", "bfloat16")
    assert float(wide["weights"].split()[0]) == pytest.approx(2 * float(narrow["weights"].split()[0]), rel=0.01)
    assert float(narrow["median latency"].split()[0]) > 0
