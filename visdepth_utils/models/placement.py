"""Models larger than one device: weights over several GPUs, CPU and disk (accelerate), or 4 bits.

accelerate wraps the ``forward`` of modules: it moves what they are called with to where they run,
and fetches weights that lie elsewhere. Our hooks run before that, on the module itself, so both
live side by side as long as no tensor of ours meets one of another device. The rule: states, masks
and ids are at home, the device that the model takes its inputs on; keys and values of a layer stay
where that layer runs.
"""

import contextlib
import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import align_module_device, get_balanced_memory, has_offloaded_params
from transformers import BitsAndBytesConfig, PreTrainedModel

DeviceMap = str | dict[str, Any]
"""``"auto"``, another strategy of accelerate, or module name -> device, ``"cpu"`` or ``"disk"``."""

KNOWN_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_placement(device: str, device_map: DeviceMap | None, load_in_4bit: bool) -> None:
    """Refuse (ValueError) placements that contradict each other or cannot be served here."""
    if device_map is not None and device != "auto":
        raise ValueError(
            f"device={device!r} and device_map={device_map!r} both say where: give one of them"
        )
    if isinstance(device_map, str) and device_map not in KNOWN_MAPS:
        raise ValueError(
            f"device_map={device_map!r} is unknown: use {', '.join(map(repr, KNOWN_MAPS))}, "
            "or a dict of module names, e.g. {'': 'cpu'}"
        )
    if not isinstance(device_map, str | dict | None):
        raise ValueError(f"device_map={device_map!r}: give a name or a dict of module names")
    if isinstance(device_map, dict):
        for module, where in device_map.items():
            if not _is_there(where):
                raise ValueError(
                    f"device_map sends {module!r} to {where!r}, which is not there: use 'cpu', "
                    f"'disk', or a GPU's number below {torch.cuda.device_count()}"
                )
    if not load_in_4bit:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "load_in_4bit needs bitsandbytes, which is not installed: "
            "pip install 'visdepth-utils[4bit]'"
        )
    if not torch.cuda.is_available() or device == "cpu":
        raise ValueError(
            "load_in_4bit needs a CUDA device: leave it out, or load with device_map='auto' where "
            "there is one"
        )


def _is_there(where: int | str | torch.device) -> bool:
    """Whether a device that a map names exists on this machine."""
    if where in ("cpu", "disk"):
        return True
    try:
        device = torch.device(where)
    except (RuntimeError, TypeError):
        return False
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return device.type != "meta" and (device.index or 0) < count


def on_cpu_only(device_map: DeviceMap) -> bool:
    """Whether nothing of a map runs on an accelerator."""
    if isinstance(device_map, str):
        return not torch.cuda.is_available()
    return set(map(str, device_map.values())) <= {"cpu", "disk"}


def reading_options(
    device_map: DeviceMap | None, load_in_4bit: bool, device: torch.device, folder: str
) -> dict[str, Any]:
    """What ``from_pretrained`` is called with besides: placement, and NF4 multiplied in bfloat16.

    ``folder`` is for weights that the map sends to the disk.
    """
    options: dict[str, Any] = {}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        device_map = {"": device} if device_map is None else device_map
    if device_map is not None:
        options |= {"device_map": device_map, "offload_folder": folder}
    return options


@contextlib.contextmanager
def offload_folder() -> Iterator[tuple[str, list[PreTrainedModel]]]:
    """A temporary folder for weights on disk; it goes when the model put into the list does."""
    folder, owners = tempfile.mkdtemp(prefix="visdepth-offload-"), []
    try:
        yield folder, owners
    finally:
        if owners:
            weakref.finalize(owners.pop(), shutil.rmtree, folder, ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def spread(model: PreTrainedModel, device_map: DeviceMap, folder: str) -> PreTrainedModel:
    """Place a model that lies in memory as a map says, as ``from_pretrained`` would."""
    whole = tuple(model._no_split_modules or ())
    if isinstance(device_map, str):
        low = device_map == "balanced_low_0"
        most = None
        if device_map != "sequential":
            most = get_balanced_memory(model, no_split_module_classes=whole, low_zero=low)
        device_map = infer_auto_device_map(model, most, no_split_module_classes=whole)
    skip = getattr(model, "_skip_keys_device_placement", None)
    return dispatch_model(model, device_map, offload_dir=folder, skip_keys=skip, force_hooks=True)


def home(model: PreTrainedModel, fallback: torch.device) -> torch.device:
    """The device that a model, spread or not, takes its inputs on; never ``meta``."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None and getattr(model, "hf_device_map", None):
        device = next(p.device for p in model.parameters() if p.device.type != "meta")
    return fallback if device is None else torch.device(device)


def check_fetched(model: PreTrainedModel) -> None:
    """Refuse a map that sends away what accelerate does not fetch: single and tied weights.

    ValueError names the weight.
    """
    for name, module in model.named_modules():
        for weight, value in module.named_parameters(recurse=False):
            if value.device.type == "meta" and not has_offloaded_params(module):
                full = f"{name}.{weight}".removeprefix(".")
                raise ValueError(
                    f"device_map sends {full!r} to disk or CPU, from where it is not fetched: "
                    "give the module that it belongs to, or keep it on the main device"
                )
    head = model.get_output_embeddings()
    if has_offloaded_params(head):
        try:
            head._hf_hook.weights_map["weight"]
        except KeyError as error:
            raise ValueError(
                "device_map sends an output head to disk that is tied to the input embedding and "
                "has no file of its own: keep both on the same device"
            ) from error


def has_offloaded(model: PreTrainedModel) -> bool:
    """Whether some weights are fetched only while their module runs."""
    return any(parameter.device.type == "meta" for parameter in model.parameters())


@contextlib.contextmanager
def weights_here(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, methods beside ``forward`` find the weights that their module holds."""
    with align_module_device(model), align_module_device(model.base_model):
        yield


def check_memory(model_bytes: int, name: str) -> None:
    """Refuse to draw a model for which there is no memory, before the system kills the process."""
    free = psutil.virtual_memory().available
    if model_bytes > free:
        raise MemoryError(
            f"{name!r}: its untrained control is drawn in memory as a whole and takes "
            f"{model_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: use a machine with more "
            "memory, or report this control as not measured"
        )
