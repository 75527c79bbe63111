"""``kvloom calibrate``: learn a codec profile for a model from text."""

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ... import codec, limits
from ...clients import KvloomClient
from ...clients.discovery import data_directory
from ...clients.text_files import json_records, opened_text
from ...codec.layout import KvDtype
from ...codec.level import LossyCodec
from ...errors import InvalidRequest, MissingDependency
from ...kvstore.atomic_file import replace_file
from ...kvstore.profiles import ProfileShelf
from ..config import format_size
from .calibrate_blend import BlendOptions, BlendRecord, add_blend_row, blend_option, gated_profile, trials_for
from .console import address_option, examples, json_option, print_json
from .tables import print_table, since

if TYPE_CHECKING:
    from ...clients.transformers import LoadedModel
    from ...codec import AnyProfile

__all__ = ["calibrate"]

_TOKENS_DEFAULT = 28 * 896
_TOKENS_MAX = 1_000_000
_TEXT_FIELDS = ("text", "context")


@dataclass(frozen=True, slots=True)
class _Calibration:
    """What was done, as it is printed. ``model_bytes`` are of the parameters in ``dtype``, the KV's."""

    model: str
    dtype: str
    sequences: int
    tokens: int
    gradients: int
    seconds: float
    digest: bytes
    profile_bytes: int
    model_bytes: int
    share_of_model: float
    file: str
    put_to: str | None
    blend: BlendRecord | None


@dataclass(frozen=True, slots=True)
class _Learnt:
    """A profile, and how many sequences, tokens of all of them, and draws of each it took."""

    profile: "AnyProfile"
    sequences: int
    tokens: int
    draws: int


@click.command(
    epilog=examples(
        "kvloom calibrate smollm2 --text notes.md manual.txt",
        "kvloom calibrate ./Llama-3.2-1B --text docs.jsonl --dtype bfloat16",
        "kvloom calibrate model.gguf --text *.py --out code.kvlp --put",
        "kvloom calibrate smollm2 --text notes.md --codec cachegen",
        "kvloom calibrate smollm2 --text docs.jsonl --blend --put",
    )
)
@click.argument("model")
@click.argument("more", metavar="[FILE]...", nargs=-1, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--text",
    "text",
    metavar="FILE...",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Text of the kind to be stored: plain, or .jsonl with a field 'text' or 'context'.",
)
@click.option(
    "--tokens",
    "tokens_max",
    type=click.IntRange(2, _TOKENS_MAX),
    default=_TOKENS_DEFAULT,
    show_default=True,
    help="Use at most this many, evenly spread over the text.",
)
@click.option(
    "--dtype",
    type=click.Choice([item.value for item in KvDtype]),
    default=KvDtype.FLOAT32.value,
    show_default=True,
    help="How the engine that will use the profile holds its KV.",
)
@click.option(
    "--codec",
    "lossy_codec",
    type=click.Choice([item.value for item in LossyCodec]),
    default=LossyCodec.KVLOOM.value,
    show_default=True,
    help="What lossy levels are coded with; cachegen measures no gradients.",
)
@blend_option
@click.option("--no-gradients", is_flag=True, help="Faster and coarser: do not measure what the model minds.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="File or folder.  [default: where this user's daemon finds it]"
)
@click.option("--put", is_flag=True, help="Send it to the running daemon too.")
@address_option
@json_option
def calibrate(
    model: str,
    more: tuple[Path, ...],
    text: tuple[Path, ...],
    tokens_max: int,
    dtype: str,
    lossy_codec: str,
    blend: bool,
    questions: Path | None,
    trials: int,
    blend_kl: float,
    agreement: float,
    no_gradients: bool,
    out: Path | None,
    put: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Learn from text how to code MODEL's KV, and write that as a profile.

    MODEL is a Transformers folder, a GGUF file, or smollm2 or gemma3 (from
    their packages). A profile is named by the digest of its bytes. SmolLM2
    takes a few minutes on two cores.

    With --blend it says, too, how many of the tokens of documents that stand
    anywhere in a prompt must be recomputed, or that this model is none for it.
    """
    # What can be wrong with the arguments is found before minutes are spent.
    texts = _read_texts((*text, *more))
    _check_out(out)
    if put:
        with KvloomClient(address) as client:
            client.stats()
    blending = BlendOptions(questions, trials, blend_kl, agreement) if blend or questions else None
    tried = trials_for(blending, texts) if blending else []
    loaded = _load(model)
    started = time.perf_counter()
    mode = LossyCodec(lossy_codec)
    gradients = mode is LossyCodec.KVLOOM and not no_gradients
    learnt = _calibrate(loaded, texts, tokens_max, KvDtype(dtype), mode, gradients)
    profile, blended = learnt.profile, None
    if blending:
        profile, blended = gated_profile(profile, loaded, tried, blending)
    seconds = time.perf_counter() - started
    file = _write(profile, out)
    put_to = None
    if put:
        with KvloomClient(address) as client:
            client.put_profile(profile.data)
            put_to = str(client.endpoint)
    model_bytes = sum(item.numel() for item in loaded.model.parameters()) * KvDtype(dtype).bits // 8
    record = _Calibration(
        model=model,
        dtype=dtype,
        sequences=learnt.sequences,
        tokens=learnt.tokens,
        gradients=learnt.sequences * learnt.draws,
        seconds=seconds,
        digest=profile.digest,
        profile_bytes=len(profile.data),
        model_bytes=model_bytes,
        share_of_model=len(profile.data) / model_bytes,
        file=str(file),
        put_to=put_to,
        blend=blended,
    )
    if as_json:
        print_json(record)
    else:
        _report(record)


def _read_texts(files: tuple[Path, ...]) -> list[str]:
    """The text of every file, the first part of long ones. Raises :class:`InvalidRequest`, naming the file."""
    if not files:
        raise InvalidRequest("no text to calibrate on; name files with --text FILE...")
    characters_max = limits.CALIBRATION_CHARACTERS_MAX // len(files)
    texts: list[str] = []
    for file in files:
        with opened_text(file) as stream:
            json_lines = file.suffix == ".jsonl"
            text = _joined(file, stream, characters_max) if json_lines else stream.read(characters_max)
        if not text.strip():
            raise InvalidRequest(f"{file} has no text")
        texts.append(text)
    return texts


def _joined(file: Path, lines: Iterable[str], characters_max: int) -> str:
    """The texts of JSON lines as one, about ``characters_max`` long at most."""
    found: list[str] = []
    room = characters_max
    for number, fields in json_records(file, lines):
        text = next((fields[name] for name in _TEXT_FIELDS if isinstance(fields.get(name), str)), None)
        if text is None:
            raise InvalidRequest(f"{file}, line {number} has neither a field 'text' nor 'context' with text in it")
        found.append(text[:room])
        room -= len(text)
        if room <= 0:
            break
    return "\n\n".join(found)


def _check_out(out: Path | None) -> None:
    if out is not None and not (out if out.is_dir() else out.parent).is_dir():
        raise InvalidRequest(f"{out} cannot be written: {out.parent} is not a folder")


def _load(model: str) -> "LoadedModel":
    try:
        from transformers.utils.logging import disable_progress_bar

        from ...clients.transformers import load_model
    except ImportError as error:
        raise MissingDependency(f"calibrating needs {error.name}: pip install 'kvloom[torch]'") from error
    disable_progress_bar()
    return load_model(model)


def _calibrate(
    loaded: "LoadedModel", texts: list[str], tokens_max: int, dtype: KvDtype, mode: LossyCodec, gradients: bool
) -> _Learnt:
    """The profile of KV that an engine holds as ``dtype``, for the codec ``mode``."""
    import numpy as np

    from ...clients.transformers import (
        SequencePlan,
        calibration_samples,
        cut_sequences,
        fitted,
        model_layout,
        opening_tokens,
    )

    layout = model_layout(loaded.model)
    plan = SequencePlan().for_model(loaded.model).within(tokens_max)
    ids = [
        np.asarray(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
        for text in texts
    ]
    sequences = cut_sequences(
        ids, tokens=plan.tokens, sequences_max=tokens_max // plan.tokens, opening=opening_tokens(loaded.tokenizer)
    )
    with Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(f"Calibrating on {len(sequences) * plan.tokens:,} tokens", total=len(sequences))
        samples = calibration_samples(
            loaded.model,
            sequences,
            plan=plan,
            layout=layout,
            gradients=gradients,
            progress=lambda: bar.advance(task),
        )
        # Computed in float32 whatever the engine holds: rounding to its dtype is noise that nobody needs to learn.
        held = replace(layout, dtype=dtype)
        cachegen = mode is LossyCodec.CACHEGEN
        if cachegen:
            profile: AnyProfile = codec.calibrate_cachegen(samples, held)
        else:
            profile = fitted(codec.calibrate(samples, held), loaded.model, sequences, plan=plan)
    return _Learnt(profile, len(sequences), len(sequences) * plan.tokens, plan.draws if gradients else 0)


def _write(profile: "AnyProfile", out: Path | None) -> Path:
    """Write ``profile`` where it was asked for, or onto the shelf of this user's daemon."""
    if out is None:
        folder = data_directory(os.environ)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncio.run(ProfileShelf(folder / ProfileShelf.name).put(profile.digest, profile.data))
        return folder / ProfileShelf.name / profile.digest.hex()
    file = out / profile.digest.hex() if out.is_dir() else out
    replace_file(file, profile.data)
    return file


def _report(record: _Calibration) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("profile", record.digest.hex())
    gradients = f"{record.gradients} gradients" if record.gradients else "no gradients"
    table.add_row("tokens", f"{record.tokens:,} in {record.sequences} sequences, {gradients}")
    table.add_row("time", since(record.seconds))
    share = f"{record.share_of_model:.2%} of the model's {format_size(record.model_bytes)} in {record.dtype}"
    table.add_row("size", f"{format_size(record.profile_bytes)}, {share}")
    if record.blend is not None:
        add_blend_row(table, record.blend)
    table.add_row("file", record.file)
    if record.put_to is not None:
        table.add_row("put to", record.put_to)
    print_table(table)
