"""A teacher behind a model server: the Open Inference Protocol v2 over gRPC, as Triton, KServe and others speak it."""

import ipaddress
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from consilium.clients.teachers import inference_pb2 as pb
from consilium.clients.teachers.fitted import Ask, Numbers
from consilium.clients.teachers.settings import ServedSettings
from consilium.common.errors import DataError, MachineError, SettingsError

LOG: Final = logging.getLogger(__name__)
SERVICE: Final = "inference.GRPCInferenceService"

_TYPES: Final = {
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "INT8": ("i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "FP16": ("<f2", ""),  # the protocol has it in raw form only
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
}
_GIVEN: Final = ("FP32", "FP64", "FP16", "UINT8")


def opened(settings: ServedSettings, folder: Path) -> Ask:
    """Reach the server, and ask it what the model takes and gives.

    Raises
    ------
    MachineError
        If it does not answer.
    SettingsError
        If it has no such model, input or output.
    """
    channel = _channel(settings, folder)
    ask_metadata = _call(channel, "ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
    infer = _call(channel, "ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
    told = _answer(settings, ask_metadata, pb.ModelMetadataRequest(name=settings.model, version=settings.version))
    given = _named(told.inputs, settings.input_name, "input", settings.model)
    wanted = _named(told.outputs, settings.output_name, "output", settings.model)
    if given.datatype not in _GIVEN:
        raise SettingsError(f"{settings.model}: its input must be {', '.join(_GIVEN)}; it is {given.datatype}")
    if given.datatype == "UINT8" and settings.normalisation != "raw":
        raise SettingsError('the model takes whole pixels (UINT8): set teacher.normalisation = "raw"')
    kind = np.dtype(_TYPES[given.datatype][0])

    def ask(numbers: Numbers) -> Numbers:
        tensor = pb.ModelInferRequest.InferInputTensor(name=given.name, datatype=given.datatype, shape=numbers.shape)
        request = pb.ModelInferRequest(
            model_name=settings.model,
            model_version=settings.version,
            inputs=[tensor],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=wanted.name)],
            raw_input_contents=[np.ascontiguousarray(numbers, kind).tobytes()],
        )
        return _read(_answer(settings, infer, request), wanted.name)

    return ask


def _channel(settings: ServedSettings, folder: Path) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    if settings.ca:
        path = folder / settings.ca
        if not path.is_file():
            raise SettingsError(f"teacher.ca: there is no file {path}")
        return grpc.secure_channel(settings.address, grpc.ssl_channel_credentials(path.read_bytes()), options)
    if not _is_loopback(settings.address.rpartition(":")[0]):
        LOG.warning("images go to the model server at %s unencrypted; name its teacher.ca", settings.address)
    return grpc.insecure_channel(settings.address, options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _call(channel: grpc.Channel, name: str, request: Any, response: Any) -> Callable[..., Any]:
    return channel.unary_unary(
        f"/{SERVICE}/{name}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


def _answer(settings: ServedSettings, call: Callable[..., Any], request: Any) -> Any:
    try:
        return call(request, timeout=settings.timeout_s)
    except grpc.RpcError as error:
        code, said = error.code(), error.details()
        where = f"the model server at {settings.address}"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise MachineError(f"{where} did not answer in {settings.timeout_s:g} s (teacher.timeout-s)") from None
        if code == grpc.StatusCode.UNAVAILABLE:
            raise MachineError(
                f"{where} cannot be reached ({said}); is it running, and teacher.address right?"
            ) from None
        if code == grpc.StatusCode.NOT_FOUND:
            raise SettingsError(f"{where} has no model {settings.model!r}, or not this version: {said}") from None
        raise DataError(f"{where} refused the images for {settings.model!r}: {code.name}: {said}") from None


def _named(held: Sequence[Any], name: str, what: str, model: str) -> Any:
    names = [one.name for one in held]
    if (name and name not in names) or not names:
        raise SettingsError(f"teacher.{what}-name = {name!r}: {model} has {', '.join(names) or 'none'}")
    if not name and what == "input" and len(held) != 1:
        raise SettingsError(f"{model} has inputs {', '.join(names)}; a teacher has one: name it in teacher.input-name")
    return held[names.index(name)] if name else held[0]


def _read(response: Any, name: str) -> Numbers:
    """Take a tensor out of a response, in raw form or spelled out."""
    names = [tensor.name for tensor in response.outputs]
    if name not in names:
        raise DataError(f"the model server was asked for {name!r} and answered with {', '.join(names) or 'nothing'}")
    place = names.index(name)
    tensor = response.outputs[place]
    if tensor.datatype not in _TYPES:
        raise DataError(f"the output {name!r} must be of numbers; it is {tensor.datatype}")
    kind, spelled = _TYPES[tensor.datatype]
    if response.raw_output_contents:
        raw = response.raw_output_contents[place] if place < len(response.raw_output_contents) else b""
        flat = np.frombuffer(raw, kind) if len(raw) % np.dtype(kind).itemsize == 0 else np.empty(0)
    else:
        flat = np.array(getattr(tensor.contents, spelled) if spelled else (), kind)
    if any(side < 0 for side in tensor.shape) or flat.size != int(np.prod(tensor.shape, dtype=np.int64)):
        raise DataError(f"the output {name!r} is said to be {tuple(tensor.shape)}, but holds {flat.size} numbers")
    return flat.reshape(tuple(tensor.shape))
