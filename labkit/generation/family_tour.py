"""A tour of the families: each architecture built small with random weights, with no network, and looked at.

One path for both: `visit(stop)` builds the small one, `visit(stop, real=True)` loads the checkpoint it stands for where
a CUDA card holds it. What is read off is the same: parameters, active parameters, what the cache keeps, the next token.
A random model says nothing; what is seen here is shapes, and they are those of the real one.
"""

from dataclasses import dataclass, field

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel, Qwen2VLImageProcessorPil

from labkit.errors import LabError
from labkit.generation.architectures import build
from labkit.landscape.memory import memory_estimate

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SHORT, LONG = 16, 64  # tokens: the cache is looked at after both
PROMPT = "A refund is possible within thirty days of the day on which the order was delivered. "


@dataclass(frozen=True)
class Stop:
    """One architecture: `checkpoint` is what it stands for, `settings` what its small config has beside SMALL."""

    family: str
    model_type: str
    checkpoint: str
    settings: dict = field(default_factory=dict)
    image: bool = False

    @property
    def config(self):
        given = AutoConfig.for_model(self.model_type)
        text = getattr(given, "text_config", None)
        names = set((text or given).to_dict())
        sizes = {key: value for key, value in SMALL.items() if key in names}
        if text is None:
            return AutoConfig.for_model(self.model_type, **(sizes | self.settings))
        rest = dict(self.settings)
        return AutoConfig.for_model(self.model_type, text_config=sizes | rest.pop("text_config", {}), **rest)


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
EYES = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
PLACES = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
STOPS = (
    Stop("Llama", "llama", "meta-llama/Llama-3.2-1B-Instruct"),
    Stop("Mistral", "mistral", "mistralai/Mistral-7B-Instruct-v0.3", {"sliding_window": None}),
    Stop("Mixtral", "mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1", {"num_local_experts": 8}),
    Stop("Qwen2.5", "qwen2", "Qwen/Qwen2.5-0.5B-Instruct"),
    Stop("Qwen3", "qwen3", "Qwen/Qwen3-0.6B", {"head_dim": 32}),
    Stop("Qwen3 mixture", "qwen3_moe", "Qwen/Qwen3-30B-A3B", EXPERTS),
    Stop(
        "Qwen2.5-VL",
        "qwen2_5_vl",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {"text_config": {"rope_parameters": PLACES}, "vision_config": EYES, "image_token_id": 500},
        image=True,
    ),
    Stop("Gemma", "gemma2", "google/gemma-2-2b-it", {"head_dim": 16, "sliding_window": 8}),
    Stop("Phi", "phi3", "microsoft/Phi-4-mini-instruct"),
    Stop(
        "DeepSeek",
        "deepseek_v3",
        "deepseek-ai/DeepSeek-V3",
        LATENT | ROUTED | {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1},
    ),
    Stop(
        "gpt-oss",
        "gpt_oss",
        "openai/gpt-oss-20b",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
)


def tour(real: bool = False) -> list[dict[str, str]]:
    """One row for every stop; where a checkpoint cannot be had or does not fit, the small one stands in and says so."""
    return [visit(stop, real) for stop in STOPS]


def visit(stop: Stop, real: bool = False, image: Image.Image | None = None) -> dict[str, str]:
    """What the architecture looks like: class, parameters, active parameters, cache after 16 and 64 tokens, next token.

    `image` is shown to a stop that takes images (a plain one unless given).
    """
    network, weights = _load(stop, real)
    ids, seen = _input(stop, network, weights, image)
    short, long = (_cache_bytes(network, ids[:, :length], {}) for length in (SHORT, LONG))
    with torch.inference_mode():
        logits = network(input_ids=ids, **seen).logits[0, -1]
    total = sum(parameter.numel() for parameter in network.parameters())
    return {
        "family": stop.family,
        "stands for": stop.checkpoint,
        "weights": weights,
        "class": type(network).__name__,
        "parameters": f"{total:,}",
        "active": f"{active_parameters(network):,}",
        f"cache, {SHORT} tokens": f"{short:,} B",
        f"cache, {LONG} tokens": f"{long:,} B",
        "image": f"{int((ids == network.config.image_token_id).sum())} tokens" if stop.image else "",
        "next token": str(int(logits.argmax())),
    }


def _load(stop: Stop, real: bool) -> tuple[PreTrainedModel, str]:
    """The network, and which weights it has: the checkpoint's, or small random ones with the reason."""
    torch.manual_seed(0)
    if not real:
        return build(stop.config, "cpu").eval(), "random, small"
    if why := _why_not(stop):
        return build(stop.config, "cpu").eval(), f"random, small: {why}"
    kind = type(build(stop.config))
    try:
        return kind.from_pretrained(
            stop.checkpoint, dtype="auto", device_map="cuda", trust_remote_code=False
        ), "checkpoint"
    except (OSError, ValueError) as error:
        return build(stop.config, "cpu").eval(), f"random, small: {str(error).splitlines()[0][:80]}"


def _why_not(stop: Stop) -> str:
    """Why the checkpoint cannot be loaded here, or ""."""
    if not torch.cuda.is_available():
        return "no CUDA card"
    quant = "mxfp4" if stop.model_type == "gpt_oss" else "bf16"
    fits = memory_estimate(stop.checkpoint, quant, 2 * LONG).fits(torch.cuda.mem_get_info()[0] / 1e9)
    return "" if fits == "yes" else f"the free memory of the card does not hold it ({fits})"


def _input(stop: Stop, network: PreTrainedModel, weights: str, image: Image.Image | None) -> tuple:
    """Token ids, shape (1, tokens), and what the network is given of the image."""
    loaded = weights == "checkpoint"
    if loaded:
        tokenizer = AutoTokenizer.from_pretrained(stop.checkpoint, trust_remote_code=False)
        ids = tokenizer(PROMPT * 8, return_tensors="pt").input_ids[:, :LONG]
    else:
        ids = torch.randint(1, 400, (1, LONG))
    if not stop.image:
        return ids.to(network.device), {}
    eyes = network.config.vision_config
    sizes = {"patch_size": eyes.patch_size, "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}
    processor = (
        AutoImageProcessor.from_pretrained(stop.checkpoint, backend="pil", trust_remote_code=False)
        if loaded
        else Qwen2VLImageProcessorPil(**sizes)
    )
    made = processor(images=[image or Image.new("RGB", (96, 64), "steelblue")], return_tensors="pt")
    places = int(made["image_grid_thw"].prod()) // eyes.spatial_merge_size**2
    ids = torch.cat([torch.full((1, places), network.config.image_token_id), ids], dim=1)
    seen = {"pixel_values": made["pixel_values"].to(network.dtype), "image_grid_thw": made["image_grid_thw"]}
    seen["mm_token_type_ids"] = (ids == network.config.image_token_id).int()
    return ids.to(network.device), {name: value.to(network.device) for name, value in seen.items()}


def _cache_bytes(network: PreTrainedModel, ids: torch.Tensor, seen: dict) -> int:
    with torch.inference_mode():
        layers = network(input_ids=ids, use_cache=True, **seen).past_key_values.layers
    return sum(kept.numel() * kept.element_size() for layer in layers for kept in (layer.keys, layer.values))


def active_parameters(network: PreTrainedModel) -> int:
    """Parameters that one token meets: all, but of the experts of a layer only the share that its router takes."""
    config = network.config.get_text_config()
    experts = getattr(config, "num_local_experts", None) or getattr(config, "n_routed_experts", None)
    experts = experts or getattr(config, "num_experts", None)
    total = sum(parameter.numel() for parameter in network.parameters())
    if not experts:
        return total
    held = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name)
    return total - held + held * config.num_experts_per_tok // experts


def mixtral_routers(tokens: int = LONG) -> list[dict[str, object]]:
    """What `router_use` says of a small Mixtral that reads so many random tokens."""
    torch.manual_seed(0)
    mixtral = next(stop for stop in STOPS if stop.family == "Mixtral")
    return router_use(build(mixtral.config, "cpu").eval(), torch.randint(1, 400, (1, tokens)))


def router_use(network: PreTrainedModel, ids: torch.Tensor) -> list[dict[str, object]]:
    """For every layer with a router: how many of the tokens went to each expert, and how many experts got any.

    Raises LabError for a network without routers.
    """
    with torch.inference_mode():
        routed = getattr(network(input_ids=ids, output_router_logits=True), "router_logits", None)
    if not routed:
        raise LabError(f"{type(network).__name__} has no routers", "give a mixture of experts, such as Mixtral")
    rows = []
    for layer, scores in enumerate(routed):
        experts = scores.shape[-1]
        chosen = scores.topk(network.config.num_experts_per_tok).indices.flatten()
        counts = torch.bincount(chosen, minlength=experts).tolist()
        rows.append({"layer": layer, "experts used": f"{sum(map(bool, counts))} of {experts}"} | _named(counts))
    return rows


def _named(counts: list[int]) -> dict[str, object]:
    return {f"expert {number}": count for number, count in enumerate(counts)}


def dense_and_mixture() -> list[dict[str, object]]:
    """A small dense Qwen, a Mixtral and a Qwen mixture: parameters, active ones, and how many experts tokens used."""
    rows = []
    for stop in (found for found in STOPS if found.family in ("Qwen3", "Mixtral", "Qwen3 mixture")):
        torch.manual_seed(0)
        network = build(stop.config, "cpu").eval()
        total, active = sum(p.numel() for p in network.parameters()), active_parameters(network)
        row = {"family": stop.family, "total": f"{total:,}", "active": f"{active:,}", "share": f"{active / total:.0%}"}
        for tokens in (1, LONG):
            row[f"experts used by {tokens} token{'s' * (tokens > 1)}, first layer"] = _first_use(network, tokens)
        rows.append(row)
    return rows


def _first_use(network: PreTrainedModel, tokens: int) -> object:
    if active_parameters(network) == sum(parameter.numel() for parameter in network.parameters()):
        return "no experts"
    return router_use(network, torch.randint(1, 400, (1, tokens)))[0]["experts used"]
