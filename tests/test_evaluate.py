"""Evaluations: figures of real files, reproducible, cached; what cannot be done is named, not fatal."""

import io
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, features

from aiocodec.errors import AicError, ImageError
from aiocodec.evaluate import codecs as codecs_module
from aiocodec.evaluate import study as study_module
from aiocodec.evaluate.codecs import CodecSpec, Coder, Worker, code
from aiocodec.evaluate.report import (
    CROP,
    SLIDER,
    as_csv,
    at_size,
    choose,
    compare,
    points_table,
    write_report,
)
from aiocodec.evaluate.restorers import RESTORERS
from aiocodec.evaluate.study import (
    Curve,
    Measures,
    Results,
    Sample,
    Study,
    add_noise,
    default_cache,
    read_curves,
    spoil,
)
from aiocodec.image import read
from aiocodec.metrics import blockiness, psnr

WIDTH, HEIGHT = 192, 176


@pytest.fixture
def folder(tmp_path, photo):
    """Three clean images."""
    clean = tmp_path / "clean"
    clean.mkdir()
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        part = photo.rgb[i * 70 : i * 70 + HEIGHT, i * 90 : i * 90 + WIDTH]
        Image.fromarray(part).save(clean / name)
    return clean


def names(samples):
    return {sample.image for sample in samples}


@pytest.fixture
def run():
    """Run a study and end its processes."""
    studies = []

    def run(*args, **options):
        studies.append(Study(*args, **options))
        return studies[-1].run()

    yield run
    for study in studies:
        study.close()


# --------------------------------------------------------------------------- inputs


def test_noise_is_that_of_other_projects(photo):
    noise = np.random.default_rng(7).normal(0, 25, photo.rgb.shape)
    expected = np.clip(np.round(photo.rgb + noise), 0, 255).astype(np.uint8)
    assert np.array_equal(add_noise(photo, 25, 7).rgb, expected)
    assert np.array_equal(spoil(photo, "noise:25", 7).rgb, expected)


def test_degradations_are_seeded(photo):
    assert np.array_equal(spoil(photo, "clean", 1).rgb, photo.rgb)
    for name in ("snow", "haze:0.5", "noise:10+jpeg:50"):
        a, b, c = (spoil(photo, name, seed).rgb for seed in (1, 1, 2))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    for name in ("fog", "noise:x", "noise:-5", "haze:2", ""):
        with pytest.raises(AicError):
            spoil(photo, name, 1)


@pytest.mark.parametrize(
    ("text", "name", "qualities"),
    [
        ("aic", "aic", (10, 30, 50, 70, 90)),
        ("aic:fast@60,30,30", "aic:fast", (30, 60)),
        ("aic/3@30", "aic/3", (30,)),
        ("aic:fast/9@60", "aic:fast/9", (60,)),
        ("jpeg@0,100", "jpeg", (0, 100)),
        ("nlm+avif@20", "nlm+avif", (20,)),
        ("bm3d:12.5+webp@20", "bm3d:12.5+webp", (20,)),
    ],
)
def test_specifications(text, name, qualities):
    spec = CodecSpec.parse(text)
    assert (spec.name, spec.qualities) == (name, qualities)


@pytest.mark.parametrize(
    "text",
    [
        "png",
        "jpeg@101",
        "jpeg:fast",
        "jpeg/3",
        "aic/10",
        "jpeg@",
        "aic@5,x",
        "median+avif",
        "nlm",
        "nlm:0+avif",
        "nlm:256+avif",
        "nlm:1.2.3+avif",
    ]
    + ["", "aic aic"],
)
def test_wrong_specifications(text):
    with pytest.raises(ValueError):
        CodecSpec.parse(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degradations": ["fog"]}, "fog"),
        ({"codecs": ["jpeg", "jpeg@30"]}, "twice"),
        ({"codecs": ["gif"]}, "gif"),
    ],
)
def test_wrong_arguments(folder, options, words):
    with pytest.raises(ValueError, match=words):
        Study(folder, **options)


def test_folders_of_one_name_are_told_apart(folder, tmp_path):
    paths = [tmp_path / parent / "input" for parent in ("light", "heavy")]
    for path in paths:
        path.mkdir(parents=True)
    with pytest.raises(ValueError, match="two degradations"):
        Study(folder, degraded=[paths[0], paths[0]])
    study = Study(folder, degraded=[*paths, folder], degradations=["clean"])
    assert study.degradations == ("light/input", "heavy/input", f"{tmp_path.name}/clean", "clean")
    assert [study.is_clean(name) for name in study.degradations] == [False, False, False, True]
    study.close()


def test_hidden_files_and_folders_are_no_images(folder):
    (folder / "._a.png").write_bytes(b"from another system")
    (folder / "A.png").mkdir()
    study = Study(folder)
    assert [source.path.name for source in study.sources] == ["a.png", "b.png", "c.png"]
    study.close()


def test_ambiguous_names_are_no_pairs(folder, tmp_path):
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    Image.open(folder / "a.png").save(folder / "a.bmp")
    Image.open(folder / "a.png").save(spoiled / "a.webp")
    Image.open(folder / "b.png").save(spoiled / "b.png")
    Image.open(folder / "b.png").save(spoiled / "b.webp")
    study = Study(folder, degraded=[spoiled])
    study.close()
    whats = {what for what, _ in study.results.failures}
    lost = {str(spoiled / "a.webp"), str(spoiled / "b.webp")}
    assert whats == {"a.bmp", "a.png", "c.png", *lost}  # b.png has its very name


def test_an_empty_folder(tmp_path):
    with pytest.raises(ImageError, match="no images"):
        Study(tmp_path)


# --------------------------------------------------------------------------- figures


def test_samples_are_those_of_real_files(folder, run):
    results = run(folder, degradations=["noise:25"], codecs=["jpeg@30", "webp@50"])
    assert len(results.samples) == 6 and not results.failures
    for number, name in enumerate(("a.png", "b.png", "c.png"), start=1):
        clean = read((folder / name).read_bytes())
        file = io.BytesIO()
        Image.fromarray(add_noise(clean, 25, number).rgb).save(
            file, "JPEG", quality=30, optimize=True, progressive=True
        )
        (sample,) = (s for s in results.samples if (s.image, s.codec) == (name, "jpeg"))
        assert sample.measures.bpp == 8 * len(file.getvalue()) / (WIDTH * HEIGHT)
        decoded = np.asarray(Image.open(file).convert("RGB"))
        assert sample.measures.psnr == psnr(clean.rgb, decoded)
        assert sample.measures.blocks == blockiness(decoded)
        assert 0 < sample.measures.ms_ssim < 1 and 0 < sample.measures.edges < 1
        assert sample.measures.encode_seconds > 0 and sample.measures.decode_cpu_seconds > 0
    jpeg, webp = results.curves
    ((quality, mean),) = jpeg.points
    assert (jpeg.codec, jpeg.images, quality) == ("jpeg", 3, 30)
    of_jpeg = [s.measures for s in results.samples if s.codec == "jpeg"]
    assert mean.bpp == pytest.approx(sum(m.bpp for m in of_jpeg) / 3)
    assert mean.psnr == pytest.approx(sum(m.psnr for m in of_jpeg) / 3)
    assert mean.blocks == pytest.approx(sum(m.blocks for m in of_jpeg) / 3)
    assert jpeg.digest == webp.digest


def test_aic_is_measured_as_it_codes(codec, folder, run):
    results = run(folder, codecs=["aic@40"], every=3, device="cpu")
    (sample,) = results.samples
    picture = read((folder / "a.png").read_bytes())
    data = codec.encode(picture, 40, strip=True)
    assert sample.measures.bpp == 8 * len(data) / (WIDTH * HEIGHT)
    expected = psnr(picture.rgb, codec.decode(data).rgb)
    assert sample.measures.psnr == pytest.approx(expected, abs=0.02)
    if sys.platform == "linux":
        assert 50 < sample.measures.peak_mib < 4000


def test_every_nth_image_keeps_its_number(folder, run):
    whole = run(folder, degradations=["noise:40"], codecs=["jpeg@30"])
    some = run(folder, degradations=["noise:40"], codecs=["jpeg@30"], every=2)
    assert names(some.samples) == {"a.png", "c.png"}
    sizes = [{s.image: s.measures.bpp for s in r.samples} for r in (whole, some)]
    assert sizes[1].items() <= sizes[0].items()


def test_a_cascade_is_told_the_noise(folder, run):
    study = Study(
        folder, degradations=["clean", "rain", "noise:50", "noise"], codecs=["webp", "nlm+webp"]
    )
    applicable = {name: [s.name for s in study.applicable(name)] for name in study.degradations}
    assert applicable == {
        "clean": ["webp"],
        "rain": ["webp"],
        "noise:50": ["webp", "nlm+webp"],
        "noise": ["webp"],  # of unknown strength
    }
    results = run(folder, degradations=["noise:50"], codecs=["webp@60", "nlm+webp@60"])
    alone, restored = results.curves
    assert restored.points[0][1].psnr > alone.points[0][1].psnr + 3
    assert restored.points[0][1].bpp < alone.points[0][1].bpp / 2
    assert restored.points[0][1].encode_cpu_seconds > alone.points[0][1].encode_cpu_seconds


@pytest.mark.parametrize(("name", "kind", "gain"), [("dcp", "haze", 1.0), ("dgsm", "rain", 0.2)])
def test_restorers_of_weather(photo, name, kind, gain):
    """They need no strength, run on every picture, and bring pictures in their weather nearer to clean."""
    spec = CodecSpec.parse(f"{name}+webp")
    assert spec.told(None) == spec.told(25.0) == 0
    with pytest.raises(ValueError, match="told no strength"):
        CodecSpec.parse(f"{name}:25+webp")
    clean = photo.rgb[:256, :256]
    if kind == "haze":  # thicker upwards, under a gray sky
        t = np.linspace(0.3, 0.9, len(clean))[:, None, None]
        spoiled = (clean * t + 200 * (1 - t)).astype(np.uint8)
    else:  # streaks of 24 pixels, upright
        rng = np.random.default_rng(0)
        streaks = np.zeros(clean.shape[:2])
        for row, column in zip(rng.integers(0, 232, 150), rng.integers(0, 256, 150), strict=True):
            streaks[row : row + 24, column] = 60
        spoiled = np.clip(clean + streaks[..., None], 0, 255).astype(np.uint8)
    restored = RESTORERS[name].restore(spoiled, 0)
    assert restored.shape == clean.shape and restored.dtype == np.uint8
    assert psnr(restored, clean) > psnr(spoiled, clean) + gain
    assert psnr(RESTORERS[name].restore(spoiled[:9, :17], 0), spoiled[:9, :17]) > 5  # any size


def test_one_restoration_serves_all_qualities(photo, monkeypatch):
    calls = []
    halved = replace(RESTORERS["nlm"], restore=lambda x, sigma: calls.append(sigma) or x // 2)
    monkeypatch.setitem(RESTORERS, "nlm", halved)
    coder = Coder(CodecSpec.parse("nlm+jpeg"))
    first, second = (code(coder, photo.rgb, quality, 20.0) for quality in (30, 60))
    other = code(coder, photo.rgb[::2], 30, 20.0)
    assert calls == [20.0, 20.0]
    assert psnr(first.decoded, photo.rgb // 2) > 25 and len(second.data) > len(first.data)
    assert other.decoded.shape == photo.rgb[::2].shape


def test_deltas(folder, run):
    results = run(folder, codecs=["webp", "jpeg"])
    (delta,) = results.deltas
    assert (delta.codec, delta.anchor) == ("webp", "jpeg")
    assert delta.bd_rate < 0 < delta.bd_psnr and delta.overlap[0] < delta.overlap[1]
    far = run(folder, codecs=["webp@1,5", "jpeg@97,99"])
    assert far.deltas[0].bd_rate is far.deltas[0].bd_psnr is far.deltas[0].overlap is None
    assert "in common" in far.deltas[0].reason
    lone = run(folder, codecs=["webp@1,50", "jpeg@50"])
    assert "two points" in lone.deltas[0].reason


def test_the_reference_is_the_first_codec_or_none(folder, run):
    """A cascade cannot be run on clean images; nobody takes its place."""
    study = Study(folder, degradations=["clean", "noise:50"], codecs=["nlm+webp", "webp", "jpeg"])
    results = study.run()
    study.close()
    assert {(d.degradation, d.codec) for d in results.deltas} == {("noise:50", "nlm+webp")}
    assert any("nlm+webp has no curve for clean" in note for note in study.notes)
    assert any("nlm+webp is left out of clean" in note for note in study.notes)


def test_nothing_to_do(folder):
    with pytest.raises(ValueError, match="unknown noise"):
        Study(folder, codecs=["nlm+webp"])


def test_identical_pixels_are_no_number_in_json(tmp_path, run):
    Image.new("RGB", (32, 32), (128, 128, 128)).save(tmp_path / "gray.png")
    results = run(tmp_path, codecs=["jpeg@50,90"])
    assert {s.measures.psnr for s in results.samples} == {math.inf}
    text = json.dumps(results.to_dict(), allow_nan=False)
    (tmp_path / "r.json").write_text(text)
    (curve,) = read_curves(tmp_path / "r.json")
    assert curve == results.curves[0]  # None, where psnr is expected, is infinite again
    assert curve.points[0][1].ms_ssim is None  # 32 pixels have no five scales


def test_what_means_cannot_tell_is_noted(tmp_path, photo):
    Image.new("RGB", (200, 200), (128, 128, 128)).save(tmp_path / "flat.png")
    Image.fromarray(photo.rgb[:100, :100]).save(tmp_path / "small.png")
    with Study(tmp_path, codecs=["jpeg@50"]) as study:
        study.run()
    assert study.notes == [
        "flat.png lost nothing to jpeg@50, so that mean PSNRs are infinite",
        "small.png is too small for MS-SSIM, its means are unknown",
    ]


# --------------------------------------------------------------------------- what goes wrong


def test_pairs_that_do_not_fit(folder, tmp_path, run, photo):
    rainy = tmp_path / "rainy"
    rainy.mkdir()
    spoiled = spoil(read((folder / "a.png").read_bytes()), "rain:0.5", 1).rgb
    Image.fromarray(spoiled).save(rainy / "a.webp", lossless=True)  # pairs by name or by stem
    Image.fromarray(photo.rgb[:50, :60]).save(rainy / "b.png")
    Image.fromarray(spoiled).save(rainy / "d.png")
    results = run(folder, degraded=[rainy], codecs=["jpeg@30"])
    assert [(s.image, s.degradation) for s in results.samples] == [("a.png", "rainy")]
    failures = dict(results.failures)
    assert "60x50 pixels, the clean image 192x176" in failures["b.png"]
    assert "no degraded version" in failures["c.png"]
    assert "no clean version" in failures[str(rainy / "d.png")]
    assert len(failures) == 3
    file = io.BytesIO()
    Image.fromarray(spoiled).save(file, "JPEG", quality=30, optimize=True, progressive=True)
    assert results.samples[0].measures.bpp == 8 * len(file.getvalue()) / (WIDTH * HEIGHT)


def test_one_unreadable_file_is_named_once(folder, run):
    (folder / "b.png").write_bytes(b"no image")
    results = run(folder, degradations=["clean", "noise:10"], codecs=["jpeg@30", "webp@30"])
    ((what, why),) = results.failures
    assert what == "b.png" and "image" in why
    assert names(results.samples) == {"a.png", "c.png"}
    assert [curve.images for curve in results.curves] == [2] * 4


def test_a_codec_that_pillow_lacks(folder, run, monkeypatch):
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    results = run(folder, codecs=["jpeg@30", "avif@30"])
    assert results.failures == [("avif", "this Pillow has no AVIF")]
    assert [curve.codec for curve in results.curves] == ["jpeg"]


def test_a_model_without_weights(folder, run):
    results = run(folder, codecs=["aic:l@30", "jpeg@30"])
    ((what, why),) = results.failures
    assert what == "aic:l" and "no weights" in why
    assert names(results.samples) == {"a.png", "b.png", "c.png"}


def test_missing_restorers_are_a_note_unless_asked_for(folder, monkeypatch):
    monkeypatch.setitem(RESTORERS, "nlm", replace(RESTORERS["nlm"], module="no_such_module"))
    study = Study(folder, degradations=["noise:25"])
    assert not study.results.failures and "aiocodec[evaluate]" in study.notes[0]
    study.close()
    study = Study(folder, degradations=["noise:25"], codecs=["jpeg", "nlm+jpeg"])
    assert study.results.failures[0][0] == "nlm+jpeg"
    study.close()


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("can't allocate memory")])
def test_too_little_memory_for_one_image(folder, run, monkeypatch, fault):
    measure = study_module.ms_ssim
    images = []

    def fail_once(clean, decoded):
        images.append(clean)
        if len(images) == 2:
            raise fault
        return measure(clean, decoded)

    monkeypatch.setattr(study_module, "ms_ssim", fail_once)
    results = run(folder, codecs=["jpeg@30"])
    assert results.failures == [("b.png, clean, jpeg@30", "not enough memory")]
    assert results.curves[0].images == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_names_that_are_no_utf_8(folder, tmp_path):
    os.rename(os.fsencode(folder / "b.png"), os.fsencode(folder) + b"/\xff.png")
    with Study(folder, codecs=["jpeg@30,60"]) as study:
        results = study.run()
        write_report(study, tmp_path / "out", "aic")
    assert len(results.curves[0].points) == 2 and results.curves[0].images == 3
    assert read_curves(tmp_path / "out" / "results.json") == results.curves


def test_means_are_over_the_same_images(folder, run, monkeypatch):
    code = Worker.code

    def fail_once(self, x, quality, sigma=None):
        if self._arguments[0].codec == "webp" and quality == 60:
            calls.append(x)
            if len(calls) == 2:
                raise AicError("out of luck")
        return code(self, x, quality, sigma)

    calls = []
    monkeypatch.setattr(Worker, "code", fail_once)
    results = run(folder, codecs=["jpeg@30", "webp@30,60,80"])
    assert results.failures == [("b.png, clean, webp@60", "out of luck")]
    assert len(results.samples) == 3 + 3 + 1 + 3
    for curve in results.curves:
        chosen = [s for s in results.samples if s.codec == curve.codec and s.image != "b.png"]
        for quality, mean in curve.points:
            rates = [s.measures.bpp for s in chosen if s.quality == quality]
            assert curve.images == len(rates) == 2
            assert mean.bpp == pytest.approx(np.mean(rates))


def test_a_process_that_dies_is_an_error_and_starts_again(photo):
    worker = Worker(CodecSpec.parse("jpeg"))
    try:
        before = worker.code(photo.rgb, 30).data
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(AicError, match="died"):
            worker.code(photo.rgb, 30)
        assert worker.code(photo.rgb, 30).data == before
        with pytest.raises(AicError):
            worker.code(photo.rgb[:0], 30)  # an error over there is one here
        assert worker.code(photo.rgb, 30).data == before
    finally:
        worker.close()


def test_a_process_that_cannot_start_is_a_failure(folder, run, monkeypatch):
    def refuse(*args, **options):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(codecs_module.subprocess, "Popen", refuse)
    results = run(folder, codecs=["jpeg@30"])
    assert [what for what, _ in results.failures] == [
        f"{name}, clean, jpeg@30" for name in ("a.png", "b.png", "c.png")
    ]
    assert "cannot be started" in results.failures[0][1]


# --------------------------------------------------------------------------- cache


def test_an_interrupted_study_goes_on(folder, tmp_path, run, monkeypatch):
    options = {"codecs": ["jpeg@20,40", "webp@30"], "cache": tmp_path / "cache" / "c.sqlite"}
    coded = []
    code = Worker.code
    monkeypatch.setattr(
        Worker, "code", lambda self, *args: coded.append(args[1]) or code(self, *args)
    )
    study = Study(folder, **options)
    assert len(study) == 9
    with pytest.raises(KeyboardInterrupt):
        study.run(
            lambda files: (_ for _ in ()).throw(KeyboardInterrupt) if len(coded) == 4 else None
        )
    study.close()
    assert len(coded) == 4
    results = run(folder, **options)
    assert len(coded) == 9
    assert run(folder, **options).to_dict() == results.to_dict()
    assert len(coded) == 9
    run(folder, **{**options, "codecs": ["jpeg@20,40,60"]})  # only what is new
    assert coded[9:] == [60, 60, 60]
    image = Image.open(folder / "a.png")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(folder / "a.png")
    run(folder, **options)
    assert len(coded) == 15  # one image has changed


def test_the_cache_knows_weights_and_options(monkeypatch):
    spec = CodecSpec.parse("jpeg")
    before = CodecSpec.parse("jpeg").identity
    assert spec.identity == before
    changed = ("JPEG", {"optimize": False, "progressive": True})
    monkeypatch.setitem(codecs_module.PILLOW, "jpeg", changed)
    assert CodecSpec.parse("jpeg").identity != before
    from aiocodec.pretrained import Manifest

    aic = CodecSpec.parse("aic").identity
    codecs_module._aic_digest.cache_clear()
    monkeypatch.setattr(Manifest, "digest", lambda self, name: "0" * 64)
    assert CodecSpec.parse("aic").identity != aic
    codecs_module._aic_digest.cache_clear()


def test_rows_of_an_older_cache_are_measured_again(folder, tmp_path, monkeypatch):
    cache = tmp_path / "c.sqlite"
    now = study_module.FORMAT
    for form in (now - 1, now):
        monkeypatch.setattr(study_module, "FORMAT", form)
        study_module._methods.cache_clear()
        with Study(folder, codecs=["jpeg@30"], cache=cache) as study:
            results = study.run()
        assert not study.notes and all(s.measures.blocks > 0 for s in results.samples)
        if form < now:  # it did not know of blocks
            with sqlite3.connect(cache) as database:
                database.execute("UPDATE measures SET row = json_remove(row, '$.blocks')")
            database.close()


@pytest.mark.parametrize("kind", ["garbage", "folder"])
def test_a_broken_cache_is_only_a_note(folder, tmp_path, run, kind):
    cache = tmp_path / "cache"
    if kind == "garbage":
        cache.write_bytes(b"this is not a database" * 100)
    else:
        cache.mkdir()
    study = Study(folder, codecs=["jpeg@30"], cache=cache)
    results = study.run()
    study.close()
    assert len(results.samples) == 3 and "cache cannot be used" in study.notes[0]


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are those of Linux")
def test_the_cache_is_where_the_user_has_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert default_cache() == tmp_path / "elsewhere" / "aiocodec" / "evaluate.sqlite"
    usual = tmp_path / ".cache" / "aiocodec" / "evaluate.sqlite"
    for ignored in ("", "not/absolute"):  # the specification has it so
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache() == usual
    assert not any(tmp_path.iterdir())  # asking makes no folder


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system knows a home")
def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user without an entry
    assert default_cache() is None


# --------------------------------------------------------------------------- earlier results


def test_results_can_be_compared_with(folder, tmp_path, run):
    results = run(folder, codecs=["jpeg@20,40,60", "webp@20,60"])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.to_dict()))
    curves = read_curves(path)
    assert curves == results.curves
    old = replace(curves[0], codec="jpeg before")
    again = run(folder, codecs=["jpeg@20,40,60"], against=[old])
    (delta,) = again.deltas
    assert (delta.anchor, delta.bd_rate, delta.bd_psnr) == ("jpeg before", 0, 0)
    fewer = run(folder, codecs=["jpeg@20,40,60"], against=[old], every=2)
    assert not fewer.deltas and "other images" in fewer.failures[0][1]


def test_curves_by_hand(folder, tmp_path, run):
    points = [{"bpp": rate, "psnr": quality} for rate, quality in ((0.3, 22), (1, 28), (4, 40))]
    curve = {"degradation": "clean", "codec": "VTM", "images": 3, "points": points}
    path = tmp_path / "by-hand.json"
    path.write_text(json.dumps({"curves": [curve]}))
    results = run(folder, codecs=["jpeg"], against=read_curves(path))
    assert results.deltas[0].anchor == "VTM" and results.deltas[0].bd_rate is not None
    head, *rows = points_table(results.curves)
    blocks = {row[1]: row[head.index("blocks")] for row in rows}
    assert blocks["VTM"] == "-" and float(blocks["jpeg"]) > 0


def test_earlier_results_of_the_same_codecs_keep_apart(folder, tmp_path, run):
    before = run(folder, degradations=["clean", "noise:9"], codecs=["jpeg@20,60,80", "webp@20,60"])
    with Study(folder, codecs=["jpeg@30,70", "webp@20,60"], against=before.curves) as study:
        results = study.run()
        write_report(study, tmp_path / "out", "aic")
    names = [curve.codec for curve in results.curves]
    assert names == ["jpeg", "webp", "jpeg before"]  # that of webp has not changed
    assert [d.anchor for d in results.deltas] == ["webp", "jpeg before"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<td>jpeg before</td><td class=") == 1
    assert "earlier results for noise:9 are not used" in study.notes


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"curves": [{}]}', '{"curves": 3}', "\x00"]
    + [
        json.dumps({"curves": [{"degradation": "clean", "codec": c, "images": 3, "points": [p]}]})
        for c, p in (
            ("x", {"psnr": 30}),
            ("x", {"bpp": 1}),
            ("x", {"bpp": "1", "psnr": 30}),
            ("x", {"bpp": 1, "psnr": 30, "ms_ssim": "y"}),
            (3, {"bpp": 1, "psnr": 30}),
        )
    ],
)
def test_files_that_hold_no_results(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no results"):
        read_curves(path)


# --------------------------------------------------------------------------- reports


class Page(HTMLParser):
    """What a browser would load, and how deep elements are nested."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "srcset")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report(folder, tmp_path):
    os.rename(folder / "a.png", folder / "a <b>&.png")
    study = Study(folder, degradations=["clean", "noise:25"], codecs=["webp@10,40,70", "jpeg"])
    study.run()
    notes = write_report(study, tmp_path / "out", "aic evaluate <here>")
    study.close()
    assert notes == []
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {
        "report.html",
        "results.json",
        "results.csv",
        "rd-clean.png",
        "rd-clean.svg",
        "rd-noise-25.png",
        "rd-noise-25.svg",
    }
    assert Image.open(tmp_path / "out" / "rd-clean.png").width > 500
    page = Page(files["report.html"].decode())
    assert not page.open  # every element is closed
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"url\(|@import|<script ", files["report.html"].decode())
    assert page.text.count(SLIDER.read_text("utf-8")) == 1
    assert files["report.html"].count(b"<th>edges</th><th>blocks</th>") == 2
    assert "aic evaluate <here>" in page.text and "a <b>&.png" in page.text
    assert read_curves(tmp_path / "out" / "results.json") == study.results.curves
    lines = as_csv(study.results).splitlines()
    assert files["results.csv"].decode().splitlines() == lines
    assert len(lines) == 1 + 3 * 2 * 8
    assert lines[0].startswith("image,degradation,codec,quality,bpp,psnr,ms_ssim,edges,blocks,")


def test_pictures_are_those_of_the_table(folder):
    """A cascade first: its picture is restored, the others have nearly its size."""
    codecs = ["nlm+webp@20,60,80", "webp@1,20,60", "nlm+jpeg@10,30,60"]
    with Study(folder, degradations=["noise:50"], codecs=codecs) as study:
        results = study.run()
        rows = list(compare(study, "noise:50"))
    assert [row.why.split()[0] for row in rows] == ["best", "worst"]
    for row in rows:
        assert [tile.title for tile in row.tiles] == [
            "input",
            "webp",
            "nlm+jpeg",
            "nlm+webp",
            "clean",
        ]
        (ours,) = (
            s.measures
            for s in results.samples
            if (s.image, s.codec, s.quality) == (row.image, "nlm+webp", 60)
        )
        size = round(ours.bpp * WIDTH * HEIGHT / 8)
        detail = f"q 60 \u00b7 {size} bytes \u00b7 {ours.bpp:.3f} bpp \u00b7 {ours.psnr:.2f} dB"
        assert row.tiles[3].detail == detail
        clean = read((folder / row.image).read_bytes()).rgb
        assert row.tiles[-1].crop.shape == (HEIGHT, WIDTH, 3)  # the image is smaller than a crop
        assert np.array_equal(row.tiles[-1].crop, clean)
        assert all(np.array_equal(tile.part, tile.crop) for tile in row.tiles)
        assert (row.rival, row.extent) == ("input", f"{WIDTH}x{HEIGHT} pixels")
        assert row.tiles[0].detail == f"noise:50 \u00b7 {psnr(clean, row.tiles[0].crop):.2f} dB"
        for tile in row.tiles[1:3]:
            rate = float(re.search(r"([\d.]+) bpp", tile.detail)[1])
            assert 0.6 < rate / ours.bpp < 1.6  # webp has few sizes on so noisy an image


def test_of_large_pictures_a_part_is_shown_that_holds_the_crop(tmp_path):
    """About as many pixels as it may have, in the proportion of the whole, and none less than the crop."""
    x, y = np.meshgrid(np.arange(960), np.arange(640))
    places = np.stack([x % 256, y % 256, x // 256 + 16 * (y // 256)], 2).astype(np.uint8)
    Image.fromarray(places).save(tmp_path / "large.png")

    def corners(pixels):
        """Left, top, right, bottom."""
        return [
            value
            for x, y, high in (pixels[0, 0].tolist(), pixels[-1, -1].tolist())
            for value in (x + 256 * (high % 16), y + 256 * (high // 16))
        ]

    with Study(tmp_path, codecs=["jpeg@30", "webp@30"]) as study:
        study.run()
        for limit in (200_000, 1):
            (row,) = compare(study, "clean", limit)
            assert [tile.crop.shape for tile in row.tiles] == [(CROP[1], CROP[0], 3)] * 3
            height, width, _ = row.tiles[0].part.shape
            assert row.extent == f"{width}x{height} of 960x640 pixels"
            assert row.rival == "webp"
            if limit == 1:
                assert all(np.array_equal(tile.part, tile.crop) for tile in row.tiles)
            else:
                assert height * width == pytest.approx(limit, rel=0.01)
                assert width / height == pytest.approx(1.5, abs=0.01)
            clean = row.tiles[-1]
            left, top, right, bottom = corners(clean.part)
            assert np.array_equal(clean.part, places[top : bottom + 1, left : right + 1])
            inner = corners(clean.crop)
            assert left <= inner[0] and top <= inner[1] and right >= inner[2] and bottom >= inner[3]


def test_odd_names_in_reports(folder, tmp_path):
    """Mathematics, glyphs that a font lacks, markup, two names that give one file name."""
    spoiled = []
    names = ("x$\\frac$", "\u96e8", "<i title='\"&amp;", "noise-25")
    for name in names:
        spoiled.append(tmp_path / name)
        spoiled[-1].mkdir()
        for path in folder.iterdir():
            (spoiled[-1] / path.name).write_bytes(path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Study(
            folder, degraded=spoiled, degradations=["noise:25"], codecs=["jpeg@20,60"]
        ) as study:
            study.run()
            assert not write_report(study, tmp_path / "out", "aic")
    assert len(list((tmp_path / "out").glob("rd-*.svg"))) == 5
    page = (tmp_path / "out" / "report.html").read_text()
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(set(links)) == 5 and set(links) == set(re.findall(r'h2 id="([^"]+)"', page))
    parsed = Page(page)
    assert not parsed.open and "<i t" not in page
    assert all(parsed.text.count(name) >= 3 for name in names)  # link, head, input


def test_pictures_have_nearly_equal_sizes(folder):
    study = Study(folder, codecs=["jpeg"])
    x = read((folder / "a.png").read_bytes()).rgb
    spec = study.specs[0]
    worker = study.workers["jpeg"]
    for goal in (3000, 5000):
        quality, coded = at_size(study, spec, x, None, goal)
        sizes = [len(worker.code(x, q).data) for q in range(0, 101)]
        nearest = min(abs(math.log(size / goal)) for size in sizes)
        assert abs(math.log(sizes[quality] / goal)) == pytest.approx(nearest, abs=0.02)
        assert len(coded.data) == sizes[quality]
    assert (
        at_size(study, spec, x, None, 1)[0] <= 1 and at_size(study, spec, x, None, 10**6)[0] == 100
    )
    study.close()


def test_the_best_and_the_worst_image_are_shown():
    measures = Measures(1.0, 30.0, None, None, None, 0, 0, 0, 0, None)
    results = Results()
    for image, gain in (("a", 1.0), ("b", -2.0), ("c", 3.0)):
        for codec, advantage in (("ours", gain), ("strong", 0.0), ("weak", -5.0)):
            for quality, (rate, db) in enumerate(((0.5, 30.0), (1.0, 33.0), (2.0, 36.0))):
                m = replace(measures, bpp=rate, psnr=db + advantage)
                results.samples.append(Sample(image, "clean", codec, quality, m))
    points = {
        codec: tuple(
            (i, replace(measures, bpp=rate, psnr=db + level))
            for i, (rate, db) in enumerate(((0.5, 30.0), (1.0, 33.0), (2.0, 36.0)))
        )
        for codec, level in (("ours", 0.7), ("strong", 0.0), ("weak", -5.0))
    }
    curves = [Curve("clean", codec, 3, p) for codec, p in points.items()]
    results.deltas = [study_module.Delta.between(curve, curves[0]) for curve in curves[1:]]
    (best, why), (worst, _) = choose(results, "clean", "ours", ["strong", "weak"])
    assert (best, worst) == ("c", "b") and "against strong: +3.00 dB" in why


# --------------------------------------------------------------------------- pictures over each other

# Every pixel says which picture it is of, and where it was there.
SIDES = (300, 200)
NAMES = ("input", "aic", "clean")
MARKS = (0, 80, 160)  # blue, in the order of the names
GRIP = 26  # columns on either side of the line that the line and its grip may hide


def marked(blue):
    x, y = np.meshgrid(np.arange(SIDES[0]) % 256, np.arange(SIDES[1]))
    return np.stack([x, y, np.full_like(x, blue)], 2).astype(np.uint8)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--force-color-profile=srgb"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page of a folder; nothing but itself and its own data may be asked for, and no error be
    left in the console."""
    contexts, seen = [], []

    def opened(path, **options):
        context = browser.new_context(**{"viewport": {"width": 900, "height": 700}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url[:100]))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert all(entry.startswith(("file://", "data:")) for entry in seen), seen


@pytest.fixture
def slider(opened, tmp_path):
    """A page with three pictures, the last a canvas."""

    def slider(**options):
        for name, blue in zip(NAMES, MARKS, strict=True):
            Image.fromarray(marked(blue)).save(tmp_path / f"{name}.png")
        data = Image.fromarray(marked(MARKS[2])).convert("RGBA").tobytes().hex()
        (tmp_path / "page.html").write_text(
            "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
            f"<script>{SLIDER.read_text('utf-8')}</script>"
            "<picture-slider left='input' right='aic'>"
            "<img data-name='input' data-note='9 dB' src='input.png'><span>9 dB</span>"
            "<img data-name='aic' src='aic.png'>"
            f"<canvas data-name='clean' width='{SIDES[0]}' height='{SIDES[1]}'></canvas>"
            "</picture-slider><script>"
            f"const bytes = '{data}'.match(/../g).map((byte) => parseInt(byte, 16));"
            f"const data = new ImageData(new Uint8ClampedArray(bytes), {SIDES[0]}, {SIDES[1]});"
            "document.querySelector('canvas').getContext('2d').putImageData(data, 0, 0);"
            "</script>"
        )
        page = opened(tmp_path / "page.html", **options)
        page.wait_for_function(
            "document.images.length == 2 && [...document.images].every(i => i.complete)"
        )
        return page

    return slider


def stage(page):
    """What is seen of the pictures, as pixels."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shot = page.locator(".stage").first.screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def line(page):
    """The column of the stage where the line is."""
    return page.evaluate(
        """() => {
            const root = document.querySelector("picture-slider").shadowRoot;
            const [stage, line] = [".stage", ".line"].map((name) =>
                root.querySelector(name).getBoundingClientRect());
            return line.left + line.width / 2 - stage.left;
        }"""
    )


def halves(page):
    """The names of the pictures that are seen left and right of the line."""
    pixels, column = stage(page)[..., 2], round(line(page))
    sides = pixels[:, : max(column - GRIP, 0)], pixels[:, column + GRIP :]
    found = [[n for n, mark in zip(NAMES, MARKS, strict=True) if (s == mark).any()] for s in sides]
    assert all(len(names) <= 1 for names in found)
    return tuple(names[0] if names else None for names in found)


def value(page):
    return int(page.locator(".line").first.get_attribute("aria-valuenow"))


def test_both_halves_are_the_pixels_of_the_chosen_pictures(slider):
    page = slider()
    seen = stage(page)
    rows, columns = ((seen.shape[axis] - SIDES[1 - axis]) // 2 for axis in (0, 1))
    seen = seen[rows:, columns:][: SIDES[1], : SIDES[0]]
    middle = SIDES[0] // 2
    assert np.array_equal(seen[:, : middle - GRIP], marked(MARKS[0])[:, : middle - GRIP])
    assert np.array_equal(seen[:, middle + GRIP :], marked(MARKS[1])[:, middle + GRIP :])


def test_any_two_can_be_chosen_and_never_one_twice(slider):
    page = slider()
    left, right = page.get_by_label("Picture at left"), page.get_by_label("Picture at right")
    assert halves(page) == ("input", "aic")
    right.select_option("clean")
    assert halves(page) == ("input", "clean")
    left.select_option("clean")  # which is at right
    assert halves(page) == ("clean", "input") and right.input_value() == "input"
    page.evaluate("document.querySelector('picture-slider').setAttribute('left', 'aic')")
    assert halves(page) == ("aic", "input") and left.input_value() == "aic"
    assert page.locator(".note").all_inner_texts() == ["", "9 dB"]


def test_the_line_follows_mouse_and_keys(slider):
    page = slider()
    assert value(page) == 50
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + line(page), box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.25 * SIDES[0], y, steps=3)
    page.mouse.up()
    page.mouse.move(x, y)  # nothing is held any more
    assert value(page) == 75 and halves(page) == ("input", "aic")
    page.mouse.click(x - 0.4 * SIDES[0], y)
    assert value(page) == 10
    focused = "document.querySelector('picture-slider').shadowRoot.activeElement.role"
    assert page.evaluate(focused) == "slider"
    for key, expected in {
        "ArrowRight": 11,
        "ArrowLeft": 10,
        "PageUp": 20,
        "ArrowUp": 21,
        "ArrowDown": 20,
        "PageDown": 10,
        "End": 100,
        "Home": 0,
    }.items():
        page.keyboard.press(key)
        assert value(page) == expected, key
    assert halves(page) == (None, "aic")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert value(page) == 100 and halves(page) == ("input", None)


def test_tab_leads_to_every_part(slider):
    page = slider()
    found = []
    for _ in range(7):
        page.keyboard.press("Tab")
        element = "document.querySelector('picture-slider').shadowRoot.activeElement"
        found.append(page.evaluate(f"{element}.ariaLabel || {element}.innerText"))
    assert found[:3] == ["Picture at left", "Picture at right", "Line between both pictures"]
    assert found[3:] == ["1\u00d7", "2\u00d7", "4\u00d7", "Hold to swap"]


def test_what_is_held_swaps_both_sides_until_it_is_let_go(slider):
    page = slider()
    page.locator(".line").focus()
    button = page.get_by_text("Hold to swap")
    box = button.bounding_box()

    def press():
        page.mouse.move(box["x"] + 9, box["y"] + 9)
        page.mouse.down()

    for hold, release in (
        (lambda: page.keyboard.down("f"), lambda: page.keyboard.up("f")),
        (press, page.mouse.up),
    ):
        hold()
        assert halves(page) == ("aic", "input")
        assert button.get_attribute("aria-pressed") == "true"
        release()
        assert halves(page) == ("input", "aic")
        assert button.get_attribute("aria-pressed") == "false"


def test_pixels_are_enlarged_whole_and_can_be_moved(slider):
    page = slider(viewport={"width": 500, "height": 700})  # narrower than twice the picture
    page.get_by_text("2\u00d7").click()

    large = marked(MARKS[0]).repeat(2, 0).repeat(2, 1)

    def corner():
        """Where what is seen begins in the enlarged picture; of rounded corners and the line, nothing."""
        seen = stage(page)[10:90, 10:90]
        found = [
            (x, y)
            for x in (2 * seen[0, 0, 0], 2 * seen[0, 0, 0] + 1)
            for y in (2 * seen[0, 0, 1], 2 * seen[0, 0, 1] + 1)
            if np.array_equal(large[y : y + 80, x : x + 80], seen)
        ]
        assert len(found) == 1
        return np.array(found[0]) - 10

    before = corner()
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + 60, box["y"] + 60
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 30, y - 20, steps=2)
    page.mouse.up()
    assert (corner() - before).tolist() == [30, 20] and value(page) == 50
    page.keyboard.press("Shift+ArrowLeft")
    assert corner()[0] < before[0]
    for _ in range(20):
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Shift+ArrowUp")
    assert corner().tolist() == [0, 0]  # and no farther
    page.keyboard.press("4")
    page.keyboard.press("-")
    assert page.get_by_text("2\u00d7").get_attribute("aria-pressed") == "true"


def test_a_finger_moves_the_line_on_a_phone_and_nothing_sticks_out(slider):
    page = slider(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator(".stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2 + 60, box["y"] + 50)
    assert value(page) == pytest.approx(50 + 100 * 60 / SIDES[0], abs=1)
    assert halves(page) == ("input", "aic")


def test_pictures_may_come_and_go(slider):
    page = slider()
    page.evaluate("document.querySelector('[data-name=aic]').remove()")
    assert halves(page) == ("input", "clean")
    assert page.locator("select:visible").count() == 0  # of two there is nothing to choose
    page.evaluate("document.querySelector('[data-name=clean]').remove()")
    assert stage(page)[..., 2].min() == MARKS[0] and page.locator(".line:visible").count() == 0
    page.evaluate("document.querySelector('[data-name=input]').remove()")
    page.evaluate(
        """() => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height, canvas.dataset.name] = [40, 30, "late"];
            document.querySelector("picture-slider").append(canvas);
        }"""
    )
    page.locator("canvas").wait_for()
    assert page.locator("canvas").bounding_box()["width"] == 40


def test_without_scripts_all_pictures_are_seen(opened, folder, tmp_path):
    with Study(folder, codecs=["jpeg@20,50,80", "webp@20,50,80"], every=3) as study:
        study.run()
        write_report(study, tmp_path / "out", "aic")
    page = opened(tmp_path / "out" / "report.html", java_script_enabled=False)
    pictures = page.locator("picture-slider img")
    tops = {pictures.nth(i).bounding_box()["y"] for i in range(3)}
    lefts = {pictures.nth(i).bounding_box()["x"] for i in range(3)}
    assert pictures.count() == 3 and len(tops) == 1 and len(lefts) == 3
    assert page.locator("picture-slider span").all_inner_texts()[2] == "clean\nthe original"


def test_a_report_opens_from_a_folder_with_what_was_coded(opened, folder, tmp_path):
    with Study(
        folder, degradations=["noise:25"], codecs=["jpeg@20,50,80", "webp@20,50,80"]
    ) as study:
        study.run()
        write_report(study, tmp_path / "out", "aic")
        rows = list(compare(study, "noise:25"))
    page = opened(tmp_path / "out" / "report.html", color_scheme="dark")
    assert page.locator("picture-slider").count() == len(rows)
    tiles = rows[0].tiles
    first = page.locator("picture-slider").first
    assert first.get_by_label("Picture at left").input_value() == "input"
    assert first.get_by_label("Picture at right").input_value() == "jpeg"
    left = first.get_by_label("Picture at left")
    assert left.locator("option").all_inner_texts() == [tile.title for tile in tiles]
    assert all("bytes" in tile.detail for tile in tiles[1:-1])
    for choice in ("webp", "clean"):
        left.select_option(choice)
        seen = stage(page)
        (tile,) = (tile for tile in tiles if tile.title == choice)
        assert first.locator(".note").first.inner_text() == tile.detail
        x, y = (seen.shape[1] - WIDTH) // 2, (seen.shape[0] - HEIGHT) // 2
        half = WIDTH // 2 - GRIP
        assert np.array_equal(seen[y : y + HEIGHT, x : x + half], tile.part[:, :half])


# --------------------------------------------------------------------------- the command


def aic(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "aiocodec", "evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_command(folder, tmp_path):
    out = tmp_path / "report"
    command = [folder, "--codec", "jpeg", "--codec", "webp", "--degrade", "clean", "--out", out]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}
    done = aic(*command, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^clean +jpeg +20 +[\d.]+ +[\d.]+ ", done.stdout, re.M)
    assert " PSNR  MS-SSIM  edges  blocks " in done.stdout
    assert re.search(r"^clean +jpeg +webp +[+-][\d.]+ % +[+-][\d.]+ dB ", done.stdout, re.M)
    assert (out / "report.html").exists()
    if sys.platform == "linux":
        assert (tmp_path / "home" / "aiocodec" / "evaluate.sqlite").exists()
    (folder / "b.png").write_bytes(b"")
    done = aic(*command[:-2], "--json", "--no-cache", env=environment)
    assert done.returncode == 8
    assert done.stderr.splitlines() == [
        "aic: clean: means over 2 of 3 images",
        "aic: b.png: the input is empty",
        "aic: 1 left out, the rest is done",
    ]
    document = json.loads(done.stdout)
    assert document["curves"][0]["images"] == 2
    assert all(point["blocks"] > 0 for point in document["curves"][0]["points"])
    assert document["failures"] == [{"what": "b.png", "error": "the input is empty"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--codec gif", "no codec is called 'gif'"),
        ("--degrade fog", "no degradation is called 'fog'"),
        ("--json --csv", "--json or --csv"),
        ("--cache x --no-cache", "--cache or --no-cache"),
        ("--every 0", "--every"),
        ("--against missing.json", "does not exist"),
        ("--against {folder}/a.png", "no results"),
        ("--degraded missing", "does not exist"),
        ("--codec nlm+webp", "nothing to do"),
    ],
)
def test_wrong_usage(folder, arguments, words):
    from click.testing import CliRunner

    from aiocodec.cli import cli

    arguments = arguments.format(folder=folder).split()
    result = CliRunner().invoke(cli, ["evaluate", str(folder), *arguments])
    assert result.exit_code == 2 and words in result.output


def test_a_folder_that_cannot_be_written_is_noticed_first(folder):
    done = aic(folder, "--codec", "jpeg", "--no-cache", "--out", folder / "a.png" / "x")
    assert (done.returncode, done.stdout) == (7, "")


def test_csv(folder):
    done = aic(folder, "--codec", "jpeg@30", "--csv", "--no-cache", "--every", 3)
    assert done.returncode == 0
    head, row = done.stdout.splitlines()
    assert head.split(",")[:5] == ["image", "degradation", "codec", "quality", "bpp"]
    assert row.startswith("a.png,clean,jpeg,30,")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a process group")
def test_ctrl_c_is_quiet_and_keeps_what_was_measured(folder, tmp_path):
    """A terminal sends SIGINT to the whole process group, the codecs' processes included."""
    cache = tmp_path / "c.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-m", "aiocodec", "evaluate", str(folder), "--cache", str(cache)]
        + ["--codec", "webp@" + ",".join(map(str, range(101)))]
        + ["--codec", "avif@" + ",".join(map(str, range(101)))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    import time

    def count():
        try:
            return sqlite3.connect(cache).execute("SELECT COUNT(*) FROM measures").fetchone()[0]
        except sqlite3.Error:
            return 0

    end = time.monotonic() + 60
    while count() < 10 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "aic: interrupted\n")
    assert 10 <= count() < 606
