"""Choice of a decoder; the modules of the decoders are imported when one is made."""

from coreset.engine.data.decoders.base import Decoder, DecoderName, Normalisation
from coreset.engine.data.geometry import Geometry
from coreset.engine.runtime.limits import available_cores
from coreset.shards.errors import MachineError, UsageError


def choose_decoder(name: str, device: str, *, exact: bool = False) -> DecoderName:
    """Resolve ``auto``: DALI's hardware decoders on a GPU, libjpeg-turbo threads on a CPU.

    ``exact`` asks for pixels equal to the reference, whatever they cost, which are Pillow's.

    Raises:
        UsageError: There is no decoder of that name, or it is not exact.
    """
    if name not in set(DecoderName):
        raise UsageError(f"decoder must be one of {', '.join(DecoderName)}, got {name}")
    if exact and name not in {DecoderName.AUTO, DecoderName.PILLOW}:
        raise UsageError(
            f"decoder {name} is not exact; leave out --decoder-exact, or choose pillow"
        )
    if exact:
        return DecoderName.PILLOW
    if name != DecoderName.AUTO:
        return DecoderName(name)
    return DecoderName.DALI if device.startswith("cuda") else DecoderName.TURBO


def decoder_reason(chosen: DecoderName, device: str) -> str:
    """Explain to people why a decoder was chosen."""
    reasons = {
        DecoderName.DALI: f"decodes on {device}, in hardware where the GPU has JPEG engines",
        DecoderName.TURBO: "the fastest on a CPU, at most 1 level from Pillow",
        DecoderName.FAST: "coarser arithmetic, see docs/pixels.md",
        DecoderName.PILLOW: "the reference, several times slower",
    }
    return f"decoder {chosen}: {reasons[chosen]}"


def decoder_notice(name: str, device: str, *, exact: bool) -> tuple[str, ...]:
    """Explain what ``auto`` chose, in a line for people; none where the decoder was named."""
    chosen = choose_decoder(name, device, exact=exact)
    return (decoder_reason(chosen, device),) if name == DecoderName.AUTO else ()


def make_decoder(
    name: str,
    geometry: Geometry,
    *,
    device: str,
    workers: int,
    exact: bool = False,
    normalisation: Normalisation | None = None,
) -> Decoder:
    """Make the decoder ``choose_decoder(name, device, exact=exact)``; no ``workers``: one per core.

    Raises:
        UsageError: There is no decoder of that name, or it is not exact.
        MachineError: DALI is not installed, or ``device`` is a GPU that is not there.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(f"device {device} is not available here; use --device cpu")
    workers = workers or available_cores()
    chosen = choose_decoder(name, device, exact=exact)
    if chosen is DecoderName.DALI:
        from coreset.engine.data.decoders.dali import DaliDecoder

        return DaliDecoder(geometry, device=device, workers=workers, normalisation=normalisation)
    from coreset.engine.data.decoders.threads import ThreadedDecoder

    return ThreadedDecoder(geometry, chosen, workers=workers, normalisation=normalisation)
