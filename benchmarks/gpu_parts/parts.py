"""Parts of the GPU check with their figures, goals and time limits, and the page that shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Unavailable(Exception):
    """A library, file or device that a part needs and this machine lacks."""


class Figure(NamedTuple):
    """A figure of a part by its name in the results: its text around the value, the value's format, and its goal.

    `further` is the goal once the first one is reached.
    """

    name: str
    template: str
    spec: str = ""
    direction: Literal["at most", "at least"] = "at most"
    goal: float | None = None
    further: float | None = None

    def goal_text(self) -> str:
        """Returns the goal: `at most 1.10 times the cosine classifier, then 1.03`."""
        further = "" if self.further is None else f", then {self.further:{self.spec}}"
        return self.template.format(f"{self.direction} {self.goal:{self.spec}}") + further

    def value_text(self, value: float | str) -> str:
        """Returns a value, followed by `met` or `missed` if there is a goal."""
        text = self.template.format(f"{value:{self.spec}}")
        if self.goal is None:
            return text
        is_met = value <= self.goal if self.direction == "at most" else value >= self.goal
        return f"{text} ({'met' if is_met else '**missed**'})"


@dataclass(frozen=True)
class Part:
    """One row of the page: `module:function` in benchmarks/gpu_parts with its arguments, stopped after `limit_s`."""

    name: str
    title: str
    limit_s: float
    function: str
    figures: tuple[Figure, ...]
    arguments: tuple[int | bool, ...] = ()


_HEADS = Figure("heads_and_losses", "error of heads and losses {}", ".1e", goal=1e-5)
_RANKS = Figure("wrong_ranks", "{} wrong MegaFace accuracies", "d", goal=0)
_MEMORY_STAGE = (
    Figure("times_cosine", "{} times the cosine classifier", ".2f", goal=1.10, further=1.03),
    Figure("times_network", "{} times the network alone", ".2f"),
    Figure("images_per_s", "{} images/s", ",.0f"),
    Figure("peak_gb", "{} GB with all three", ".1f"),
)
_IDENTITIES = (("10k", 10_000, 60), ("74k", 74_500, 60), ("300k", 300_000, 60), ("1m", 1_000_000, 90))
_RESIDENT = (
    Figure("share", "{} of the bare network", ".0%", "at least", 0.9),
    Figure("images_per_s", "{} images/s", ",.0f"),
    Figure("bare_images_per_s", "bare network {}", ",.0f"),
)
GPU_PARTS = (
    Part(
        "golden_float32",
        "golden files in float32",
        60,
        "golden:golden_float32",
        (
            _HEADS,
            # With TF32, which cuDNN by default uses for convolutions, a value has 10 bits.
            Figure("attention", "of the attention {}", ".1e", goal=2e-3),
            Figure("attention_without_tf32", "without TF32 {}", ".1e", goal=1e-5),
            _RANKS,
        ),
    ),
    Part(
        "golden_bf16",
        "golden files under bfloat16 autocast",
        60,
        "golden:golden_bf16",
        (_HEADS, Figure("attention", "of the attention {}", ".1e", goal=2e-2), _RANKS),
    ),
    Part(
        "normalisation",
        "flips and normalisation as one kernel, 512 faces",
        60,
        "numerics:fused_normalisation",
        (
            Figure("difference", "difference from the plain expression {}", ".1e", goal=1e-6),
            Figure("times_plain", "{} of its time", ".2f", goal=1.0),
            Figure("gb_per_s", "{} GB/s", ",.0f"),
        ),
    ),
    Part(
        "world_of_one",
        "SyncBatchNorm and NCCL in a world of one",
        60,
        "numerics:world_of_one",
        (
            Figure("collectives", "error of collectives {}", ".1g", goal=0),
            Figure("batch_norm", "of SyncBatchNorm {}", ".1e", goal=1e-5),
            Figure("loss", "of the loss of a memory-stage step {}", ".1e", goal=1e-5),
            Figure("gradient", "of its gradient {}", ".1e", goal=1e-4),
        ),
    ),
    *(
        Part(
            f"memory_stage_{name}",
            f"step of the memory stage, {identities:,} identities",
            limit_s,
            "training:memory_stage",
            _MEMORY_STAGE,
            (identities,),
        )
        for name, identities, limit_s in _IDENTITIES
    ),
    Part("train_eager", "`facelt train` on resident images, eager", 90, "training:train_resident", _RESIDENT, (False,)),
    Part(
        "search",
        "MegaFace search, 3,530 x 1M, by the torch engine",
        120,
        "search:megaface_search",
        (
            Figure("wrong_ids", "{} ids that differ from float64", "d", goal=0),
            Figure("score_error", "error of scores {}", ".1e", goal=1e-12),
            Figure("seconds", "{} s", ".2f"),
            Figure("times_mm", "{} times torch.mm and topk from host memory", ".2f"),
            Figure("times_mm_resident", "{} times the same with resident rows", ".1f"),
            Figure("products", "{}"),
        ),
    ),
    Part(
        "loader",
        "loader-bound training, JPEG",
        90,
        "training:loader_bound",
        (
            Figure("images_per_s", "{} images/s from the loader", ",.0f"),
            Figure("share", "{} of decoding alone", ".0%"),
            Figure("trained_images_per_s", "{} images/s in `facelt train`", ",.0f"),
            Figure("workers", "{}"),
        ),
    ),
    Part(
        "onnx",
        "ONNX graph of IResNet-50 in onnxruntime",
        90,
        "onnx_graph:onnx_direct",
        (
            Figure("cosine", "cosine with torch on the CPU {}", ".6f", "at least", 0.9999),
            Figure("difference", "difference {}", ".1e"),
            Figure("ms_per_image", "{} ms per image in batches of 64", ".3f"),
            Figure("times_torch", "{} times torch in float32", ".2f"),
        ),
    ),
    Part(
        "train_compiled",
        "`facelt train` on resident images, compiled",
        150,
        "training:train_resident",
        _RESIDENT,
        (True,),
    ),
    Part(
        "cifar",
        "CIFAR-100-LT softmax, 200 epochs",
        240,
        "training:cifar_softmax",
        (Figure("seconds", "{} s", ".0f"), Figure("data", "{}")),
    ),
)

_HEAD = """# GPU check

The first minutes on a GPU: numerical agreement with the golden files, and speed against the goals.

```
make gpu-check
python -m benchmarks.gpu_check --part train_eager --part train_compiled
```

The first command installs what is needed and measures every row in at most 8 minutes on one GPU of the H200's class.
The second measures single rows again. Both write this page and gpu.json next to it. Each part has its own time limit,
and the others continue when it fails. The head of `benchmarks/gpu_check.py` describes the options and lists the
packages.

Parts train ResNet-50 on faces of 112 x 112 pixels in batches of 512, in bfloat16. Data are made up. An error is
relative to the largest value. Figures with a goal are marked as met or missed. A row that has not been measured says
`not run`.

| part | goal | figure | machine | commit |
|---|---|---|---|---|
"""


def page_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the page with one row per part; `results` are those of the parts that were run, by name."""
    return _HEAD + "".join(_row(part, results.get(part.name, {"status": "not run"})) for part in GPU_PARTS)


def _row(part: Part, result: Mapping[str, Any]) -> str:
    goals = "; ".join(figure.goal_text() for figure in part.figures if figure.goal is not None)
    cells = (
        part.title,
        goals or "none",
        _result_text(part, result),
        result.get("machine", ""),
        result.get("commit", ""),
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |\n"


def _result_text(part: Part, result: Mapping[str, Any]) -> str:
    if result["status"] != "measured":
        return ": ".join(filter(None, (result["status"], result.get("reason"))))
    values = result["figures"]
    texts = [figure.value_text(values[figure.name]) for figure in part.figures if figure.name in values]
    size = "" if result["scale"] == 1 else f"at {result['scale']:g} of the size: "
    return size + "; ".join(texts)


def _cell(text: str) -> str:
    """Returns a text that stays within its cell of a table."""
    return " ".join(text.replace("|", "/").split())
