"""Laws of the weights: whatever a folder of weights holds, it is used as it is or ends in one sentence.

The files are those of the package, changed field by field; hashes and lengths are put right again
wherever something behind them is to be reached.
"""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from aiocodec import pretrained
from aiocodec.codec import Codec
from aiocodec.entropy.frozen import FrozenEntropyModel, Program, thaw
from aiocodec.errors import ModelError
from aiocodec.latents import LatentCoder
from aiocodec.light import load_synthesis
from aiocodec.pretrained import Manifest

SHIPPED = pretrained._folder()
ENTRIES = json.loads((SHIPPED / "manifest.json").read_text("utf-8"))
MODEL = next(iter(ENTRIES["models"]))
TRANSFORMS = ENTRIES["models"][MODEL]["transforms"][0]
ENTROPY = ENTRIES["models"][MODEL]["entropy"][0]

DEEP = "[" * 400 + "]" * 400
VALUES = [
    *(None, True, False, 0, 1, 2, 3, 7, -1, 8, 1 << 31, 1 << 63, -(1 << 63), 1 << 70, 10**30),
    *(0.0, 1.0, 8.0, 0.5, -0.0, float("nan"), float("inf"), 1e300),
    *(
        "",
        "x",
        "8",
        "hatb",
        ".",
        "..",
        "/",
        "../x",
        "a\0b",
        "\ud800",
        "é",
        "\n",
        "x" * 5000,
        "0" * 16,
    ),
    *([], [[]], [0], [1, 2], ["x"], [None], [[[0, 0], [0, 0]]], [[[0, 1], [1]]], ["hatb"] * 65),
    *({}, {"x": 1}, {"stride": 8}, {"": {}}, json.loads(DEEP)),
]


def paths(entries, at=()):
    """Where all values of a JSON document are, the whole of it first."""
    yield at
    if isinstance(entries, dict | list):
        for key in entries if isinstance(entries, dict) else range(len(entries)):
            yield from paths(entries[key], (*at, key))


def changed(entries, path, value=...):
    """A copy with another value at a place, or with none."""
    entries = copy.deepcopy(entries)
    if not path:
        return value
    at = entries
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return entries


def value_at(entries, path):
    for key in path:
        entries = entries[key]
    return entries


def same(a, b):
    """Equal in JSON, where 1, 1.0 and true differ."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def refused(use):
    """Whether `use` ends in a ModelError, which must be one short sentence; nothing else may end it."""
    try:
        use()
    except ModelError as error:
        assert error.exit_code == 5
        assert 10 < len(str(error)) < 300 and str(error).isprintable(), str(error)
        assert error.__suppress_context__ or error.__context__ is None
        return True
    return False


def use(folder):
    """All that a folder of weights is asked for, by the command line and by training."""
    manifest = Manifest.read(folder)
    name = manifest.models[0]
    assert manifest.for_fingerprint(manifest.fingerprint(name)) in manifest.models
    assert manifest.weight_bytes(name) > 0 and len(manifest.digest(name)) == 64
    loaded = manifest.load(name)
    loaded.transforms()
    loaded.trainable()
    LatentCoder(loaded.frozen)
    load_synthesis(manifest, name, threads=1)


@pytest.fixture
def folder(tmp_path):
    """A copy of the weights; big files are links until they are written."""
    (tmp_path / "manifest.json").write_text(json.dumps(ENTRIES))
    for name in ENTRIES["files"]:
        (tmp_path / name).symlink_to((SHIPPED / name).resolve())
    return tmp_path


def put(folder, name, data, **fields):
    """Write a weight file, and its length and hash into the manifest; `fields` into its model."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(data)
    entries = json.loads((folder / "manifest.json").read_text())
    entries["files"][name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    entries["models"][MODEL] |= fields
    (folder / "manifest.json").write_text(json.dumps(entries))


def test_the_weights_as_they_are_can_be_used(folder):
    assert not refused(lambda: use(folder))


# --------------------------------------------------------------------------- the manifest


@pytest.mark.parametrize("path", list(paths(ENTRIES)), ids=lambda path: "/".join(map(str, path)))
def test_every_other_value_in_the_manifest_is_refused(folder, path):
    """Of any type. (The order of models is the one thing that it says and that nothing else repeats.)"""
    for value in VALUES:
        if same(value_at(ENTRIES, path), value):
            continue
        (folder / "manifest.json").write_text(json.dumps(changed(ENTRIES, path, value)))
        assert refused(lambda: use(folder)), (path, value)


@pytest.mark.parametrize(
    "path", list(paths(ENTRIES))[1:], ids=lambda path: "/".join(map(str, path))
)
def test_a_field_that_is_missing_is_refused_unless_it_has_a_default(folder, path):
    (folder / "manifest.json").write_text(json.dumps(changed(ENTRIES, path)))
    if not refused(lambda: use(folder)):
        assert Manifest.read(folder).config(MODEL) == Manifest.read().config(MODEL)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"[" * 1_000_000,
        b'{"models":' * 100_000,
        b" " * (1 << 20) + json.dumps(ENTRIES).encode(),
        b"9" * 1_000_000,
        b'{"models": {"' + b"x" * 1_000_000,
        b'{"models": NaN, "files": Infinity}',
        json.dumps(ENTRIES).encode()[:-1],
        json.dumps(ENTRIES).encode() + b"{}",
        json.dumps(ENTRIES).encode("utf-16"),
    ],
    ids=lambda text: f"{text[:12]!r}{len(text)}",
)
def test_other_text_than_a_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_bytes(text)
    assert refused(lambda: Manifest.read(folder))


def test_no_name_in_a_manifest_leads_out_of_the_folder(folder):
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes((SHIPPED / TRANSFORMS).read_bytes())
    for name in (
        "../outside.safetensors",
        str(outside),
        "./x",
        "a/b",
        "a\\b",
        "..",
        ".",
        "",
        "C:x",
    ):
        text = json.dumps(ENTRIES).replace(json.dumps(TRANSFORMS), json.dumps(name))
        (folder / "manifest.json").write_text(text)
        assert refused(lambda: Manifest.read(folder)), name


def test_a_part_that_repeats_a_tensor_is_refused(folder):
    put(folder, "again.safetensors", (SHIPPED / TRANSFORMS).read_bytes())
    put(folder, "again.safetensors", (folder / "again.safetensors").read_bytes(),
        transforms=[TRANSFORMS, "again.safetensors"])  # fmt: skip
    assert refused(lambda: use(folder))


def test_members_that_this_version_does_not_know_do_no_harm(folder):
    entries = changed(ENTRIES, ("licence",), "MIT")
    entries["models"][MODEL]["remarks"] = entries["files"][ENTROPY]["remarks"] = [{}]
    (folder / "manifest.json").write_text(json.dumps(entries))
    assert not refused(lambda: use(folder))


def test_a_model_of_a_later_version_leaves_the_others_alone(folder):
    later = changed(ENTRIES["models"][MODEL], ("config",), {"kind": "diffusion"})
    entries = {"models": {"later": later, **ENTRIES["models"]}, "files": ENTRIES["files"]}
    (folder / "manifest.json").write_text(json.dumps(entries))
    manifest = Manifest.read(folder)
    assert refused(lambda: manifest.config("later")) and refused(lambda: manifest.load("later"))
    assert not refused(lambda: manifest.load(MODEL))


def test_models_that_do_not_exist_are_named(folder):
    manifest = Manifest.read(folder)
    for asked in (
        lambda: manifest.config("none"),
        lambda: manifest.load("none"),
        lambda: manifest.files(""),
        lambda: manifest.for_fingerprint(bytes(8)),
        lambda: manifest.for_fingerprint(b""),
        lambda: Manifest.read(folder / "none"),
        lambda: Manifest.read(folder / "manifest.json"),
    ):
        assert refused(asked)


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", [TRANSFORMS, ENTROPY])
def test_a_file_that_is_cut_is_refused_though_its_hash_is_right(folder, name):
    data = (SHIPPED / name).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = {0, 1, 7, 8, 9, 100, header // 2, header - 1, header, header + 1, len(data) - 1}
    places |= {len(data) * i // 16 for i in range(16)}
    for at in sorted(places):
        put(folder, name, data[:at])
        assert refused(lambda: use(folder)), at
    for more in (b"\0", bytes(1000), data):
        put(folder, name, data + more)
        assert refused(lambda: use(folder)), len(more)


@pytest.mark.parametrize("name", [TRANSFORMS, ENTROPY])
def test_a_file_that_is_not_the_one_in_the_manifest_is_refused(folder, name):
    data = bytearray((SHIPPED / name).read_bytes())
    (folder / name).unlink()
    assert refused(lambda: use(folder))
    (folder / name).mkdir()
    assert refused(lambda: use(folder))
    (folder / name).rmdir()
    (folder / name).symlink_to("/dev/zero" if Path("/dev/zero").exists() else "nowhere")
    assert refused(lambda: use(folder))
    (folder / name).unlink()
    for at in (0, 8, 500, len(data) // 2, -1):
        data[at] ^= 1
        (folder / name).write_bytes(data)
        assert refused(lambda: use(folder)), at
        data[at] ^= 1


@pytest.mark.parametrize("name", [TRANSFORMS, ENTROPY])
@pytest.mark.parametrize("seed", range(4))
def test_headers_of_weight_files_are_used_as_they_are_or_refused(folder, name, seed):
    """Single bytes of the header replaced, the hash of the file put right."""
    rng = np.random.default_rng(seed)
    data = bytearray((SHIPPED / name).read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(15):
        at = rng.integers(8) if rng.random() < 0.2 else rng.integers(8, header)
        before, data[at] = data[at], rng.choice(list(b'0129"{}[],:FIU\0\xff x'))
        put(folder, name, bytes(data))
        refused(lambda: use(folder))
        data[at] = before


def claims(shape, dtype, size, end=None):
    """A safetensors file whose header claims more than is there."""
    offsets = [0, size if end is None else end]
    text = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


CLAIMS = [
    claims([1 << 40], "F16", 0),
    claims([1 << 40], "F16", 8, 1 << 41),
    claims([1 << 62, 1 << 62], "F32", 4),
    claims([1 << 63], "F32", 4),
    claims([-1], "F16", 2),
    claims([0, 1 << 60], "F16", 0),
    claims([0, 1 << 63, 1 << 63], "F16", 0),
    claims([1] * 100, "F16", 2),
    claims([], "F4", 1),
    claims([2], "F4", 1),
    claims([1], "F8_E4M3", 1),
    claims([1], "F8_E8M0", 1),
    claims([1], "BF16", 2),
    claims([1], "C64", 8),
    claims([1], "BOOL", 1),
    claims([1], "U64", 8),
    claims([1], "NONE", 8),
    (1 << 63).to_bytes(8, "little") + b"{}",
    (100 << 20).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"{}",
    (1_000_000).to_bytes(8, "little") + b'{"a":' * 200_000,
]


@pytest.mark.parametrize("name", [TRANSFORMS, ENTROPY])
def test_sizes_and_types_that_are_only_claimed_are_refused(folder, name):
    for data in CLAIMS:
        put(folder, name, data)
        assert refused(lambda: use(folder)), data[:100]


def others(array):
    """Arrays of other types and shapes than one of the weights; of the same numbers where they can be."""
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.uint8, bool)
    with np.errstate(all="ignore"):
        yield from (array.astype(kind) for kind in kinds if array.dtype != kind)
    yield from (array[None], array.reshape(-1)[:-1], array[:0], np.zeros((), array.dtype))
    if array.ndim > 1:
        yield array.reshape(-1)


def test_tensors_of_other_types_and_shapes_are_refused():
    frozen = Manifest.read(SHIPPED).load_frozen(MODEL)
    tensors = dict(frozen.tensors)
    for name, array in frozen.tensors.items():
        for other in others(array):
            spoiled = {**tensors, name: other}
            assert refused(lambda t=spoiled: LatentCoder(FrozenEntropyModel.read(t))), (
                name,
                other.dtype,
                other.shape,
            )
        rest = {k: v for k, v in tensors.items() if k != name}
        if name != "embedding":  # which a model may do without
            assert refused(lambda t=rest: FrozenEntropyModel.read(t)), name
    assert refused(lambda: FrozenEntropyModel.read({}))


def test_transforms_of_other_types_and_shapes_are_refused(folder):
    tensors = load_tensors((SHIPPED / TRANSFORMS).read_bytes())
    name = next(k for k, v in tensors.items() if k.startswith("g_s.") and v.ndim == 4)
    tensor = tensors[name]
    spoiled = [
        *(tensor.to(kind) for kind in (torch.int16, torch.float64, torch.bfloat16, torch.bool)),
        *(tensor[None], tensor[:-1], tensor.reshape(-1), tensor[:0], tensor.flatten()[0].clone()),
    ]
    for value in (float("nan"), float("inf"), -float("inf")):
        spoiled.append(tensor.clone())
        spoiled[-1].view(-1)[-1] = value
    for other in spoiled:
        put(folder, TRANSFORMS, save_tensors({**tensors, name: other.contiguous()}))
        assert refused(lambda: use(folder)), (other.dtype, other.shape)
    rest = {k: v for k, v in tensors.items() if k != name}
    for named in (rest, {**rest, "g_s.other": tensor}, {**tensors, "other": tensor.clone()}, {}):
        put(folder, TRANSFORMS, save_tensors(named))
        assert refused(lambda: use(folder))


def test_densities_of_another_network_are_refused(folder):
    tensors = load_tensors((SHIPPED / TRANSFORMS).read_bytes())
    name = next(k for k, v in tensors.items() if k.startswith("entropy.") and v.ndim > 1)
    for other in (tensors[name][:-1], tensors[name] * float("nan")):
        put(folder, TRANSFORMS, save_tensors({**tensors, name: other.contiguous()}))
        assert refused(lambda: use(folder))


def test_the_codec_refuses_what_the_folder_does_not_hold(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "_folder", lambda: folder)
    Codec(device="cpu")
    for data in (b"", CLAIMS[0], (SHIPPED / TRANSFORMS).read_bytes()):
        put(folder, ENTROPY, data)
        assert refused(lambda: Codec(device="cpu"))
    shutil.rmtree(folder)
    assert refused(lambda: Codec(device="cpu"))


# --------------------------------------------------------------------------- programs

FROZEN = Manifest.read(SHIPPED).load_frozen(MODEL)
PROGRAM = json.loads(FROZEN.program.to_json())
LAYERS = [
    *(["conv1x1"], ["conv1x1", 1], ["conv1x1", "none"], ["conv1x1", "x", "x"], ["dw3x3", ["x"]]),
    *(
        ["leaky", 1],
        ["leaky"],
        ["shuffle"],
        ["shuffle", 3],
        ["shuffle", True],
        ["shuffle", 1 << 70],
    ),
    *(["residual"], ["residual", []], ["residual", [["residual", []]]], ["residual", "leaky"]),
    *(["residual", [["residual", [["residual", [["residual", [["residual", []]]]]]]]]], ["fft"]),
    *([["leaky"]], [{}], [[]], ["conv1x1", "h_s.4"], ["x" * 5000]),
]


def with_program(text):
    return {**FROZEN.tensors, "program": np.frombuffer(text, np.uint8)}


def test_the_program_as_it_is_can_be_used():
    assert (
        FrozenEntropyModel.read(with_program(json.dumps(PROGRAM).encode())).program
        == FROZEN.program
    )


def program_is_used_as_it_is_or_refused(entries):
    """Whether it was refused."""
    tensors = with_program(json.dumps(entries).encode())

    def use():
        program = FrozenEntropyModel.read(tensors).program
        assert same(json.loads(program.to_json()), entries), entries
        LatentCoder(FrozenEntropyModel(program, tensors))

    return refused(use)


@pytest.mark.parametrize("path", list(paths(PROGRAM)), ids=lambda path: "/".join(map(str, path)))
def test_every_other_value_in_a_program_is_used_as_it_is_or_refused(path):
    """Most are refused: what remains are units, tiles and layers that change no shape."""
    values = VALUES + LAYERS if "networks" in path else VALUES
    used = 0
    for value in values:
        if not same(value_at(PROGRAM, path), value):
            used += not program_is_used_as_it_is_or_refused(changed(PROGRAM, path, value))
    assert used <= 8, f"{used} other values are used"
    if path:
        removed = program_is_used_as_it_is_or_refused(changed(PROGRAM, path))
        assert removed or len(path) > 1


def test_a_program_costs_no_more_than_its_weights():
    """Each layer that names a convolution holds it in memory, so a name counts once; and texts that
    are far longer than any program are not parsed."""
    body = PROGRAM["networks"]["body"]
    assert program_is_used_as_it_is_or_refused(changed(PROGRAM, ("networks", "body"), body * 2))
    leaky = [["residual", [["residual", [["leaky"]] * 99]] * 99]] * 2
    long = changed(PROGRAM, ("networks", "body"), [*body, *leaky])
    assert program_is_used_as_it_is_or_refused(long)


@pytest.mark.parametrize(
    "change", [{"quality_levels": 3}, {"width": 200}, {"order": (((0, 0), (0, 1)),)}]
)
def test_a_frozen_model_is_thawed_as_what_it_is_alone(change):
    config = Manifest.read(SHIPPED).config(MODEL).entropy
    assert not refused(lambda: thaw(FROZEN, config))
    other = replace(config, **change)
    assert other != config and refused(lambda: thaw(FROZEN, other))


def test_tables_that_are_none_are_refused():
    for which in "yz":
        for part, values in (
            ("frequencies", (0, -1, 1 << 24, 1 << 30)),
            ("lengths", (0, 1, -5, 1 << 30)),
            ("lows", (-(1 << 31), 1 << 30, 32768)),
        ):
            name = f"tables_{which}.{part}"
            for value in values:
                spoiled = FROZEN.tensors[name].copy()
                spoiled[0] = value
                tensors = {**FROZEN.tensors, name: spoiled}
                assert refused(lambda t=tensors: LatentCoder(FrozenEntropyModel.read(t))), (
                    name,
                    value,
                )


def test_convolutions_out_of_range_are_refused():
    name = next(FROZEN.program.convolutions())
    for part, value in (
        ("exponent", -1),
        ("exponent", 49),
        ("exponent", 32767),
        ("bias", 1 << 52),
        ("bias", -(1 << 63)),
        ("bias", (1 << 63) - 1),
    ):
        spoiled = FROZEN.tensors[f"{name}.{part}"].copy()
        spoiled[-1] = value
        tensors = {**FROZEN.tensors, f"{name}.{part}": spoiled}
        assert refused(lambda t=tensors: FrozenEntropyModel.read(t)), (part, value)


MEMORY = """
import json, resource, sys
from pathlib import Path
from aiocodec.errors import ModelError
from aiocodec.pretrained import Manifest
import aiocodec.codec

folder = Path(sys.argv[1])
Manifest.read(folder).load(sys.argv[2]).trainable()
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
entries = json.loads((folder / "manifest.json").read_text())
config = entries["models"][sys.argv[2]]["config"]
for change in (
    {"entropy": {**config["entropy"], "width": 4096}},
    {"entropy": {**config["entropy"], "width": 1 << 40}},
    {"entropy": {**config["entropy"], "latents": 4096}},
    {"entropy": {**config["entropy"], "hyper": 4096}},
    {"entropy": {**config["entropy"], "order": [[[0, 1], [2, 1 << 62]]]}},
    {"analysis": [{"stride": 8, "width": 4096, "blocks": ["hatb"] * 64}]},
    {"synthesis": [{"stride": 8, "width": 1 << 62, "blocks": ["hatb"] * 64}]},
    {"synthesis": [{"stride": 8, "width": 128, "blocks": ["hatb"] * 10**5}]},
):
    entries["models"][sys.argv[2]]["config"] = {**config, **change}
    (folder / "manifest.json").write_text(json.dumps(entries))
    try:
        Manifest.read(folder).load(sys.argv[2]).trainable()
    except ModelError:
        continue
    sys.exit(f"{change} was not refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes as Linux does")
def test_nothing_is_as_large_as_a_config_claims(folder, python):
    """Fewer than 50 MB more than what the weights as they are need."""
    assert int(python(MEMORY, folder, MODEL)) < 50_000


def test_the_command_line_says_one_sentence(folder, tmp_path_factory):
    """From end to end, in a process of its own: exit code 5, one line, no traceback."""
    work = tmp_path_factory.mktemp("work")
    golden = next((Path(__file__).parent / "golden").glob("v2-pixel.aic"))
    put(folder, ENTROPY, b"{}")
    script = (
        "import sys; from pathlib import Path; from aiocodec import pretrained;"
        "pretrained._folder = lambda: Path(sys.argv[1]);"
        "from aiocodec.cli import main; main(sys.argv[2:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder, "decode", golden, work / "x.png"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 5 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no safetensors" in done.stderr


def test_arrays_come_back_as_they_were(folder):
    """What the tests above forge, they forge rightly."""
    arrays = load_arrays((SHIPPED / ENTROPY).read_bytes())
    put(folder, ENTROPY, save_arrays(arrays))
    assert Manifest.read(folder).load_frozen(MODEL).fingerprint == FROZEN.fingerprint
    assert Program.from_json(FROZEN.program.to_json()) == FROZEN.program
