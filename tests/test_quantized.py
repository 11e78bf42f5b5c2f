"""Quantized checkpoints say what transformers' dequantized model says, or are refused by name.

Judges: transformers' own dequantization (fp8, compressed-tensors, the latter packed by its own
library); for AWQ the converter of compressed-tensors; for GPTQ matrices that AutoGPTQ packed, and
what it multiplies by.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specplug.export.quantized import METHODS, REFUSED_METHODS, dequantized
from specplug.export.source import open_source
from specplug.types import ExportError
from tests_support.tiny import write_checkpoint

TOKENS = [[1, 2, 3, 40, 50, 60, 7]]
Tensors = dict[str, torch.Tensor]
GPTQ = load_file(Path(__file__).parent / "golden" / "gptq.safetensors")


@pytest.fixture
def folder(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy to be quantized."""
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny-llama"))


def is_quantized(name: str) -> bool:
    return name.endswith("_proj.weight")


def quantize(
    folder: Path, config: Mapping[str, Any] | None, one: Callable[[str, torch.Tensor], Tensors]
) -> None:
    """Replace each matrix of a layer by the tensors that ``one`` makes of it."""
    made: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        made |= one(name, tensor) if is_quantized(name) else {name: tensor}
    write(folder, config, made)


def write(folder: Path, config: Mapping[str, Any] | None, tensors: Tensors) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = json.loads((folder / "config.json").read_text())
    if config is not None:
        found["quantization_config"] = dict(config)
    (folder / "config.json").write_text(json.dumps(found))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits


def judged(folder: Path, how: Any = None) -> torch.Tensor:
    return logits(loaded(folder, how))


def loaded(folder: Path, how: Any) -> Any:
    """transformers' model of the untouched folder."""
    given = {} if how is None else {"quantization_config": how}
    with warnings.catch_warnings():  # that there are two configurations, one to say how to load
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", **given
        )
    return model.eval()


def found(folder: Path) -> torch.Tensor:
    return logits(open_source(folder).reference())


def check(folder: Path, expected: torch.Tensor, plain: torch.Tensor) -> None:
    torch.testing.assert_close(found(folder), expected, atol=1e-4, rtol=0)
    assert (expected - plain).abs().max() > 1e-3  # quantization is felt


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


def fp8(block: tuple[int, int] | None, end: str = "_scale_inv") -> Callable[..., Tensors]:
    def one(name: str, tensor: torch.Tensor) -> Tensors:
        rows, columns = block or tensor.shape
        cut = tensor.reshape(tensor.shape[0] // rows, rows, tensor.shape[1] // columns, columns)
        scale = cut.abs().amax((1, 3), keepdim=True) / 448
        stored = (cut / scale).to(torch.float8_e4m3fn).reshape(tensor.shape)
        found = scale[:, 0, :, 0] if block else scale.reshape(())
        return {name: stored, name + end: found}

    return one


@pytest.mark.parametrize("block", [None, (32, 32), (16, 32)])
def test_fp8(block: tuple[int, int] | None, folder: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads fp8 with accelerate only")
    plain = judged(folder)
    quantize(folder, FP8 | {"weight_block_size": list(block) if block else None}, fp8(block))
    how = transformers.FineGrainedFP8Config(
        dequantize=True, weight_block_size=block, activation_scheme="dynamic"
    )
    check(folder, judged(folder, how), plain)


def test_experts_in_fp8(tmp_path: Path) -> None:
    """The checkpoint has a matrix for each expert, and transformers' model all in one tensor."""
    pytest.importorskip("accelerate", reason="transformers reads fp8 with accelerate only")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folder = write_checkpoint(tmp_path / "tiny-moe", model_type="qwen3_moe", **experts)
    plain = judged(folder)
    quantize(folder, FP8 | {"weight_block_size": [32, 32]}, fp8((32, 32)))
    how = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 32))
    check(folder, judged(folder, how), plain)


def test_fp8_as_autofp8_names_it(folder: Path) -> None:
    """``weight_scale``, which transformers does not read: the same numbers under the other name."""
    shutil.copytree(folder, folder.parent / "other")
    quantize(folder, FP8, fp8(None, "_scale"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    write(folder, None, tensors | {f"{name}.input_scale": torch.ones(())})
    quantize(folder.parent / "other", FP8, fp8(None))
    torch.testing.assert_close(found(folder), found(folder.parent / "other"), atol=0, rtol=0)
    assert open_source(folder).ignored == (f"{name}.input_scale",)


def test_the_last_block_may_be_cut_off() -> None:
    stored = torch.ones(5, 3).to(torch.float8_e4m3fn)
    scale = torch.arange(1.0, 7).reshape(3, 2)
    config = FP8 | {"weight_block_size": [2, 2]}
    made, _ = dequantized(config, {"a.weight": stored, "a.weight_scale_inv": scale}, "x")
    expected = [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4], [5, 5, 6]]
    assert made["a.weight"].values().tolist() == expected
    exponents = torch.tensor([[128, 126]] * 3, dtype=torch.uint8)
    made, _ = dequantized(config, {"a.weight": stored, "a.weight_scale_inv": exponents}, "x")
    assert made["a.weight"].values()[0].tolist() == [2, 2, 0.5]


def of_library(form: str, weights: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Tensors]]:
    """A configuration of compressed-tensors, and what the library stores."""
    library = pytest.importorskip("compressed_tensors", reason="the format's own library judges")
    scheme = library.quantization.QuantizationScheme(
        targets=["Linear"], weights=library.quantization.QuantizationArgs(**weights), format=form
    )
    compressor = library.compressors.BaseCompressor.get_value_from_registry(form)
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        "ignore": ["lm_head"],
    }

    def one(name: str, tensor: torch.Tensor) -> Tensors:
        state = {"weight": tensor} | _parameters(tensor, weights)
        made = compressor.compress(state, scheme)
        return {f"{name.removesuffix('weight')}{key}": value for key, value in made.items()}

    return config, one


def _parameters(tensor: torch.Tensor, weights: Mapping[str, Any]) -> Tensors:
    """Scales and zero points, as any quantizer would find them."""
    strategy, bits = weights["strategy"], weights["num_bits"]
    rows, columns = {
        "tensor": tensor.shape,
        "channel": (1, tensor.shape[1]),
        "block": weights.get("block_structure"),
    }.get(strategy, (1, weights.get("group_size")))
    cut = tensor.reshape(tensor.shape[0] // rows, rows, tensor.shape[1] // columns, columns)
    low, high = cut.amin((1, 3)).clamp(max=0), cut.amax((1, 3)).clamp(min=0)
    whole = torch.maximum(high, -low)
    if weights["type"] == "float":
        scale = whole / {8: 448, 4: 6}[bits]
        if strategy == "tensor_group":
            overall = (448 * 6 / tensor.abs().max()).reshape(1)
            return {"weight_scale": scale * overall, "weight_global_scale": overall}
        if bits == 4:
            scale = torch.exp2(scale.log2().ceil())
        return {"weight_scale": scale.reshape(1) if strategy == "tensor" else scale}
    if weights["symmetric"]:
        scale = whole * 2 / (2**bits - 1)
        return {"weight_scale": scale.reshape(1) if strategy == "tensor" else scale}
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round() - 2 ** (bits - 1)
    return {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}


def ints(bits: int, strategy: str, *, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric, **more}


def floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True, **more}


COMPRESSED = [
    ("int-quantized", ints(8, "channel")),
    ("int-quantized", ints(8, "tensor")),
    ("int-quantized", ints(8, "channel", symmetric=False)),
    ("naive-quantized", ints(4, "group", group_size=16)),
    ("float-quantized", floats(8, "tensor")),
    ("float-quantized", floats(8, "channel")),
    ("float-quantized", floats(8, "block", block_structure=[32, 32])),
    ("pack-quantized", ints(4, "group", group_size=32)),
    ("pack-quantized", ints(4, "group", group_size=16, symmetric=False)),
    ("pack-quantized", ints(4, "channel")),
    ("pack-quantized", ints(8, "channel")),
    ("pack-quantized", ints(3, "group", group_size=32)),
    ("pack-quantized", ints(5, "channel", symmetric=False)),
    ("nvfp4-pack-quantized", floats(4, "tensor_group", group_size=16)),
    ("mxfp4-pack-quantized", floats(4, "group", group_size=32)),
]


@pytest.mark.parametrize(("form", "weights"), COMPRESSED)
def test_compressed_tensors(form: str, weights: dict[str, Any], folder: Path) -> None:
    config, one = of_library(form, weights)
    plain = judged(folder)
    quantize(folder, config, one)
    how = transformers.CompressedTensorsConfig(dequantize=True)
    if form != "nvfp4-pack-quantized":
        check(folder, judged(folder, how), plain)
        return
    theirs, ours = loaded(folder, how).state_dict(), open_source(folder).reference().state_dict()
    for name in filter(is_quantized, ours):  # the library rounds to bf16, and e2m1 has 1 bit
        torch.testing.assert_close(ours[name].values(), theirs[name], atol=0, rtol=0.01)


def test_weights_are_scaled_whatever_their_status(folder: Path) -> None:
    """``frozen`` beside weights in 8 bits: transformers once loaded them without their scales."""
    config, one = of_library("float-quantized", floats(8, "channel"))
    quantize(folder, config, one)
    expected = found(folder)
    write(
        folder, config | {"quantization_status": "frozen"}, load_file(folder / "model.safetensors")
    )
    torch.testing.assert_close(found(folder), expected, atol=0, rtol=0)


def test_experts_in_mixed_precision(tmp_path: Path) -> None:
    """fp8 attention, and experts with a scale for all their groups: which others left out."""
    experts = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folder = write_checkpoint(tmp_path / "tiny-moe", model_type="qwen3_moe", **experts)
    parts = {
        "re:.*self_attn.*": of_library("float-quantized", floats(8, "channel")),
        "re:.*mlp.experts.*": of_library(
            "nvfp4-pack-quantized", floats(4, "tensor_group", group_size=16)
        ),
    }
    groups = {
        target: config["config_groups"]["group_0"] | {"targets": [target]}
        for target, (config, _) in parts.items()
    }
    whole = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    plain = load_file(folder / "model.safetensors")
    quantize(
        folder,
        whole | {"config_groups": groups, "ignore": ["model.layers.0.mlp.experts.0", "lm_head"]},
        lambda name, tensor: next(
            one(name, tensor) for target, (_, one) in parts.items() if re.match(target[3:], name)
        ),
    )
    made = open_source(folder).reference().state_dict()
    for layer in range(2):
        together = made[f"model.layers.{layer}.mlp.experts.down_proj"].values()
        base = f"model.layers.{layer}.mlp.experts"
        before = torch.stack([plain[f"{base}.{i}.down_proj.weight"] for i in range(2)])
        # Of 4 bits: the error is a sixth of the largest of each 16 at most.
        assert (together - before).abs().max() < before.abs().max() / 6
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        assert ((made[name].values() - plain[name]).abs() <= plain[name].abs() / 15 + 1e-3).all()


def test_groups_of_compressed_tensors_are_told_apart() -> None:
    """By name before pattern before class, as the library matches them."""
    match = pytest.importorskip("compressed_tensors.utils.match", reason="the library judges")
    targets = {2: "Linear", 3: "re:.*up_proj", 4: "a.up_proj"}
    groups = {
        str(bits): {"targets": [target], "weights": ints(bits, "channel")}
        for bits, target in targets.items()
    }
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    for module, bits in {"a.up_proj": 4, "b.up_proj": 3, "b.down_proj": 2}.items():
        names = [target for target in targets.values() if match.match_name(module, target)]
        assert targets[bits] in (*names, "Linear")
        stored = {
            f"{module}.weight_packed": torch.zeros(2, bits, dtype=torch.int32),
            f"{module}.weight_scale": torch.ones(2, 1),
            f"{module}.weight_shape": torch.tensor([2, 32]),
        }
        made, _ = dequantized(config | {"config_groups": groups}, stored, "x")
        assert made[f"{module}.weight"].values().unique().tolist() == [-(2 ** (bits - 1))]


GPTQ_CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}


def put_gptq(folder: Path, case: str, config: Mapping[str, Any]) -> torch.Tensor:
    """Take AutoGPTQ's matrix for one of the model's; the logits with what it multiplies by."""
    base = "model.layers.1.self_attn.o_proj"
    tensors = load_file(folder / "model.safetensors")
    write(folder, None, tensors | {f"{base}.weight": GPTQ[f"{case}.product"]})
    expected = judged(folder)
    del tensors[f"{base}.weight"]
    parts = {part: GPTQ[f"{case}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
    write(folder, config, tensors | {f"{base}.{part}": value for part, value in parts.items()})
    return expected


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("sym", "order"), [(0, 1), (1, 0)])
def test_gptq(bits: int, sym: int, order: int, folder: Path) -> None:
    plain = judged(folder)
    config = GPTQ_CONFIG | {"bits": bits, "sym": bool(sym), "desc_act": bool(order)}
    case = f"{bits}.{sym}.{order}"
    check(folder, put_gptq(folder, case, config), plain)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_zero_points_of_the_second_format(form: str, folder: Path) -> None:
    """Also under the name of the first, as GPTQModel has written them: symmetric ones tell."""
    expected = put_gptq(folder, "4.1.0", GPTQ_CONFIG | {"checkpoint_format": form, "sym": True})
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.qzeros"
    write(folder, None, tensors | {name: torch.full_like(tensors[name], -0x77777778)})
    torch.testing.assert_close(found(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [16, 32])
def test_awq(size: int, folder: Path) -> None:
    convert = pytest.importorskip(
        "compressed_tensors.entrypoints.convert", reason="its converter from AWQ judges"
    )
    generator = torch.Generator().manual_seed(1)

    def one(name: str, tensor: torch.Tensor) -> Tensors:
        outputs, inputs = tensor.shape
        base = name.removesuffix("weight")
        integers: Any = {"dtype": torch.int32, "generator": generator}
        return {
            f"{base}qweight": torch.randint(-(2**31), 2**31, (inputs, outputs // 8), **integers),
            f"{base}qzeros": torch.randint(
                -(2**31), 2**31, (inputs // size, outputs // 8), **integers
            ),
            f"{base}scales": torch.rand(inputs // size, outputs, generator=generator) * 0.05,
        }

    plain = judged(folder)
    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    quantize(folder, config | {"version": "GEMM"}, one)
    other = Path(shutil.copytree(folder, folder.parent / "converted"))
    converter = convert.AutoAWQConverter(group_size=size)
    write(
        other,
        json.loads(converter.update_config(None).model_dump_json()),
        converter.process(load_file(folder / "model.safetensors")),
    )
    check(folder, judged(other, transformers.CompressedTensorsConfig(dequantize=True)), plain)


def scaleless(folder: Path) -> None:
    quantize(folder, FP8, lambda name, tensor: {name: tensor.to(torch.float8_e4m3fn)})


def untold(folder: Path) -> None:
    quantize(folder, None, fp8(None))


def bare(folder: Path) -> None:
    quantize(folder, None, lambda name, tensor: {name: tensor.to(torch.float8_e4m3fn)})


def misshapen(folder: Path) -> None:
    quantize(folder, FP8 | {"weight_block_size": [16, 16]}, fp8((32, 32)))


def surplus(folder: Path) -> None:
    quantize(folder, FP8, fp8(None))
    tensors = load_file(folder / "model.safetensors")
    write(folder, None, tensors | {"model.norm.weight_scale": torch.ones(())})


def other_format(folder: Path) -> None:
    config = {"quant_method": "compressed-tensors", "format": "marlin-24"}
    groups = {"group_0": {"targets": ["Linear"], "weights": ints(4, "group", group_size=32)}}
    write(folder, config | {"config_groups": groups}, load_file(folder / "model.safetensors"))


def unknown_key(folder: Path) -> None:
    put_gptq(folder, "4.1.0", GPTQ_CONFIG | {"hadamard": True})


def layers_differ(folder: Path) -> None:
    put_gptq(folder, "4.1.0", GPTQ_CONFIG | {"dynamic": {"+:.*up_proj": {"bits": 8}}})


def not_symmetric(folder: Path) -> None:
    put_gptq(folder, "4.0.1", GPTQ_CONFIG | {"sym": True})


def beside(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).write_text("{}")

    return add


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (scaleless, r"_proj\.weight is in 8 bits, and its scale, .*weight_scale_inv, is missing"),
        (untold, r"is stored as float8_e4m3fn, and config\.json has no quantization_config"),
        (bare, r"is stored as float8_e4m3fn, and config\.json has no quantization_config"),
        (misshapen, r"is of shape \(\d+, \d+\), and 64 x 96 numbers in blocks of 16 x 16"),
        (surplus, r"model\.norm\.weight_scale scales no quantized weight"),
        (other_format, r"compressed-tensors' format 'marlin-24' is not read"),
        (unknown_key, r"quantized by gptq with 'hadamard', which is not known"),
        (layers_differ, r"GPTQ with dynamic, other bits for some layers is not read"),
        (not_symmetric, r"qzeros holds \d+ to \d+, and with sym in the format gptq each"),
        (beside("hf_quant_config.json"), r"hf_quant_config\.json: NVIDIA ModelOpt"),
        (beside("quantize_config.json"), r"quantize_config\.json: its keys belong into"),
    ],
)
def test_refusals(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ExportError, match=message) as raised:
        open_source(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        *({"quant_method": name} for name in sorted(REFUSED_METHODS)),
        {"quant_method": "something-new"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"group_size": 64, "bits": 4},
    ],
)
def test_other_methods_are_refused_by_name(config: dict[str, Any], folder: Path) -> None:
    write(folder, config, load_file(folder / "model.safetensors"))
    name = config.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in config else "mlx")
    with pytest.raises(ExportError, match=f"is quantized by {name}, which is not read") as raised:
        open_source(folder)
    assert "in 16 or 32 bits" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_method_of_transformers_is_read_or_refused() -> None:
    ours = {*METHODS, *REFUSED_METHODS}
    assert not METHODS.keys() & REFUSED_METHODS.keys()
    theirs = {method.value for method in transformers.utils.quantization_config.QuantizationMethod}
    assert theirs - ours <= {"gguf"}  # a file of its own
