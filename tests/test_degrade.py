"""The degradations against the models they are named after, and JPEG against Pillow."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from aiocodec import degrade as module
from aiocodec.degrade import (
    KINDS,
    apply,
    camera_noise,
    contact_sheet,
    degrade,
    faded,
    gaussian_noise,
    haze,
    jpeg,
    on_top,
    pseudo_depth,
    rain,
    rehaze,
    snow,
)
from aiocodec.errors import AicError

DRAWN = [name for name in KINDS if name not in ("jpeg", "blur")]
WEATHER, CAMERA = {"haze", "rain", "snow"}, {"noise", "camera", "blur", "jpeg"}


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def flat(level, count=1, side=64):
    """Gray images of `level` (of 255)."""
    return torch.full((count, 3, side, side), level / 255)


def mse(a, b):
    return (a - b).square().mean().item()


def psnr(a, b):
    return -10 * math.log10(max(mse(a, b), 1e-12))


def off_grid(x):
    """How far the values are from multiples of 1/255, in those."""
    return (x * 255 - (x * 255).round()).abs().max().item()


def assert_pixels(out, like):
    assert out.shape == like.shape and out.dtype == torch.float32
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
    assert off_grid(out) < 1e-3


def likeness(x, down, right):
    """Correlation of every image with itself moved by some pixels, [B, C]."""
    x = x - x.mean((2, 3), keepdim=True)
    height, width = x.shape[2:]
    a = x[..., down:, max(0, right) : width + min(0, right)]
    b = x[..., : height - down, max(0, -right) : width - max(0, right)]
    return (a * b).mean((2, 3)) / x.square().mean((2, 3))


@pytest.fixture(scope="module")
def lake(photo):
    return torch.from_numpy(photo.rgb).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def images(lake):
    """A smooth one, a textured one and parts of a photograph, [4, 3, 96, 96]."""
    y, x = np.mgrid[:96, :96] / 96
    smooth = np.stack([0.2 + 0.6 * x, 0.5 + 0.3 * np.sin(3 * y + 2 * x), 0.8 - 0.6 * y])
    texture = 0.5 + 0.25 * np.sign(np.sin(40 * x) * np.sin(30 * y))
    texture = texture + np.random.default_rng(0).normal(0, 0.05, (3, 96, 96))
    made = torch.from_numpy(np.rint(np.stack([smooth, texture]) * 255) / 255).float().clamp(0, 1)
    return torch.cat([made, lake[..., 20:116, 30:126], lake[..., 200:296, 300:396]])


@pytest.fixture(scope="module")
def odd(lake):
    return torch.cat([lake[..., i : i + 37, i : i + 53] for i in (0, 100, 200)])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More only get into each other's way with images as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- every kind ---


@pytest.mark.parametrize("name", KINDS)
def test_pixels_in_pixels_out(name, odd):
    kind, before = KINDS[name], odd.clone()
    for amount in (kind.mild, (kind.mild + kind.severe) / 2, kind.severe, *kind.limits):
        assert_pixels(kind.apply(odd, amount, seeded()), odd)
    for extreme in (flat(0, 2, 21), flat(255, 2, 21)):
        assert_pixels(kind.apply(extreme, kind.severe, seeded()), extreme)
    assert torch.equal(odd, before), "the input stays as it is"


@pytest.mark.parametrize("name", KINDS)
def test_the_seed_alone_decides(name, odd):
    kind, state = KINDS[name], torch.get_rng_state()
    same = odd[:1].expand(2, -1, -1, -1)
    first, second = kind.apply(same, kind.severe, seeded(1))
    assert torch.equal(kind.apply(same, kind.severe, seeded(1))[0], first)
    other = kind.apply(same, kind.severe, seeded(2))[0]
    assert torch.equal(first, second) == torch.equal(first, other) == (name not in DRAWN)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", KINDS)
def test_every_image_has_its_own_amount(name, odd):
    kind = KINDS[name]
    amounts = [kind.mild, kind.severe, (kind.mild + kind.severe) / 2]
    out = kind.apply(odd, torch.tensor(amounts), seeded())
    for i, amount in enumerate(amounts):
        alone = kind.apply(odd, amount, seeded())
        assert torch.equal(kind.apply(odd, torch.full((3,), amount), seeded()), alone)
        assert (out[i] - alone[i]).abs().max() < 1.5 / 255


@pytest.mark.parametrize("name", KINDS)
def test_pixels_do_not_depend_on_memory_layout(name, odd):
    kind = KINDS[name]
    last = odd.contiguous(memory_format=torch.channels_last)
    difference = kind.apply(last, kind.severe, seeded()) - kind.apply(odd, kind.severe, seeded())
    assert difference.abs().max() < 1.5 / 255


@pytest.mark.parametrize("name", KINDS)
def test_severity_grows(name, images):
    kind, clean = KINDS[name], images.repeat(4, 1, 1, 1)
    amounts = (kind.mild, (kind.mild + kind.severe) / 2, kind.severe)
    mild, middle, severe = (mse(kind.apply(clean, a, seeded()), clean) for a in amounts)
    assert 1.3 * mild < middle and 1.3 * middle < severe
    assert mild < 0.003, "about 25 dB"


# --- noise ---


@pytest.mark.parametrize("sigma", [5, 15, 30])
def test_gaussian_noise_is_gaussian_and_white(sigma):
    gray = flat(128, 1, 400)
    noise = (gaussian_noise(gray, sigma, seeded()) - gray) * 255
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean().item()) < 5 * sigma / math.sqrt(noise.numel())
    for limit in (sigma, 2 * sigma):
        within = (noise.abs() < limit + 0.5).float().mean().item()  # levels are whole numbers
        assert abs(within - math.erf((limit + 0.5) / sigma / math.sqrt(2))) < 0.01
    for down, right in ((0, 1), (1, 0), (1, 1)):
        assert likeness(noise, down, right).abs().max() < 0.02
    colours = torch.corrcoef(noise.flatten(2)[0])
    assert (colours - torch.eye(3)).abs().max() < 0.02


def test_no_noise_and_no_blur_are_the_identity(images):
    assert torch.equal(gaussian_noise(images, 0, seeded()), images)
    assert torch.equal(module.blur(images, 0, seeded()), images)


def linear_noise(level, amount=0.3):
    gray = flat(level, 64)
    return camera_noise(gray, amount, seeded()) ** 2.2 - gray**2.2


def test_camera_noise_grows_in_proportion_to_light():
    levels = [round(255 * light ** (1 / 2.2)) for light in (0.2, 0.4, 0.6, 0.8)]
    low, *_, high = variances = [linear_noise(level).var().item() for level in levels]
    assert high > 2 * low
    steps = np.diff(variances) / np.diff([(level / 255) ** 2.2 for level in levels])
    assert steps.max() < 1.15 * steps.min(), "a straight line"


def test_camera_noise_is_balanced_and_greatest_in_red_and_blue():
    noise = linear_noise(160)
    assert abs(noise.mean() / noise.std()) < 0.02
    red, green, blue = noise.transpose(0, 1).flatten(1).var(1)
    assert red > 1.2 * green and blue > 1.1 * green


def test_half_of_camera_noise_is_demosaiced():
    noise = linear_noise(160)
    for shift in ((0, 1), (1, 0)):
        red, _, blue = likeness(noise, *shift).T
        spread = red > 0.3
        assert 0.3 < spread.float().mean() < 0.7
        assert red[spread].min() > 0.5 and blue[spread].min() > 0.5
        assert red[~spread].abs().max() < 0.15 and blue[~spread].abs().max() < 0.15


# --- blur ---


@pytest.mark.parametrize("sigma", [1, 1.6, 3])
def test_blur_is_gaussian(sigma):
    edge = flat(0, 1, 64)
    edge[..., 32:] = 1
    for x in (edge, edge.mT):
        out = module.blur(x, sigma, seeded())
        out = out[0, 0, 10] if x is edge else out[0, 0, :, 10]
        distance = torch.arange(64) - 31.5
        expected = 0.5 + 0.5 * torch.erf(distance / (sigma * math.sqrt(2)))
        assert (out - expected).abs().max() < 0.015


# --- JPEG ---


def pillow_jpeg(x, quality):
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("quality", "close"), [(30, 42), (50, 42), (75, 43.5), (95, 45.5)])
@pytest.mark.parametrize("sides", [(320, 480), (313, 465)])
def test_jpeg_is_what_a_file_would_be(lake, quality, close, sides):
    x = lake[..., : sides[0], : sides[1]]
    ours, file = jpeg(x, quality, seeded()), pillow_jpeg(x, quality)
    assert psnr(ours, file) > close
    assert 3.5 * mse(ours, file) < mse(x, file)
    assert mse(ours, x) == pytest.approx(mse(file, x), rel=0.1)


@pytest.mark.parametrize("quality", [5, 20, 28, 41, 50, 51, 60])
def test_jpeg_leaves_a_file_of_the_same_quality_as_it_is(lake, quality):
    """Another table, be it off by one, would move its coefficients."""
    x = lake[..., :160, :240]
    file = pillow_jpeg(x, quality)
    assert mse(jpeg(file, quality, seeded()), file) < 0.012 * mse(file, x)


@pytest.mark.parametrize("quality", [30, 75])
def test_jpeg_again_changes_little(lake, quality):
    once = jpeg(lake, quality, seeded())
    assert mse(jpeg(once, quality, seeded()), once) < 0.01 * mse(once, lake)


# --- haze ---


def transmission(amount):
    """Of light at mean depth."""
    return 0.9 + (0.2 - 0.9) * amount


@pytest.mark.parametrize("amount", [0, 0.5, 1])
def test_haze_is_scattering(monkeypatch, amount):
    """I = J t + A (1 - t), t falling exponentially with depth."""
    depth = torch.linspace(0.3, 2, 64).expand(4, 1, 64, 64)
    monkeypatch.setattr(module, "pseudo_depth", lambda x, rng: depth)
    black, gray, white = (haze(flat(level, 4), amount, seeded()) for level in (0, 51, 255))
    t = (white - black).clamp(min=1e-3)
    errors = t - transmission(amount) ** depth
    dim = white.amax((2, 3), keepdim=True) < 1  # light beyond white is cut off
    assert dim.sum() > 6 and (errors * dim).abs().max() < 1.1 / 255
    assert ((gray - torch.lerp(black, white, 0.2)) * dim).abs().max() < 1.1 / 255
    far = depth[0, 0, 0] > 1.5
    air = (black / (1 - t))[..., far]
    assert air.min() > 0.35 and air.max() < 1.15
    assert (air.amax(1) - air.amin(1)).max() < 0.3, "pale"
    assert (air * dim).std((2, 3)).max() < 0.02, "one colour for an image"


def test_haze_is_bluish_gray_or_brown(monkeypatch):
    monkeypatch.setattr(module, "pseudo_depth", lambda x, rng: torch.ones_like(x[:, :1]))
    red, _, blue = (haze(flat(0, 60, 8), 1, seeded()) / 0.8)[..., 0, 0].T
    warmth = red - blue
    assert warmth.min() < -0.1 and warmth.max() > 0.1 and abs(warmth.mean()) < 0.06
    assert (warmth.abs() < 0.05).any()


@pytest.mark.parametrize("amount", [0, 0.5, 1])
def test_haze_leaves_the_mean_transmission_of_contrast(amount):
    white = (torch.rand(16, 1, 64, 64, generator=seeded()) < 0.5).expand(-1, 3, -1, -1)
    out = haze(white.float(), amount, seeded())
    contrast = out[white].mean().item() - out[~white].mean().item()
    assert -0.01 < contrast - transmission(amount) < 0.05


def test_haze_bleaches(images):
    def saturation(x):
        return (x.amax(1) - x.amin(1)).mean().item()

    images = images.repeat(4, 1, 1, 1)
    light, heavy = (haze(images, amount, seeded()) for amount in (0.2, 1))
    assert saturation(images) > 1.1 * saturation(light) > 1.3 * saturation(heavy)
    assert images.amin() < light.amin() < heavy.amin()


def test_pseudo_depth_is_positive_and_of_mean_1(images):
    for x in (images, flat(128, 4, 33)):
        depth = pseudo_depth(x, seeded())
        assert depth.shape == (4, 1, *x.shape[2:])
        assert depth.min() > 0.01
        assert torch.allclose(depth.mean((1, 2, 3)), torch.ones(4), atol=1e-4)
        assert depth.std((1, 2, 3)).min() > 0.05


def test_pseudo_depth_is_of_rooms_and_of_landscapes():
    """Far over near is above fifteen in some, below 3.5 in others."""
    depth = pseudo_depth(flat(128, 60, 64), seeded()).flatten(1)
    ratio = depth.amax(1) / depth.amin(1)
    assert ratio.max() > 15 and ratio.min() < 3.5


@pytest.mark.parametrize("sides", [(40, 60), (1, 1), (7, 3)])
def test_a_room_is_far_within_and_near_at_its_edges(sides):
    room = module._room(torch.rand(40, 3, *sides), seeded())
    assert room.shape == (40, 1, *sides)
    assert room.isfinite().all() and room.min() >= 0 and room.max() <= 1
    if min(sides) > 30:
        corners = room[..., [0, 0, -1, -1], [0, -1, 0, -1]].mean((1, 2))
        assert (room.flatten(1).amax(1) == 1).all() and (corners < room.mean((1, 2, 3))).all()


def test_pseudo_depth_has_the_edges_of_the_image():
    step = flat(50, 32, 96)
    step[..., 48:] = 200 / 255
    for x, is_step in ((step, True), (flat(125, 32, 96), False)):
        slopes = pseudo_depth(x, seeded()).diff(dim=3).abs().mean((0, 1, 2))
        elsewhere = torch.cat([slopes[:44], slopes[51:]])
        assert (slopes[47] > 5 * elsewhere.max()) == is_step


def known_depth(*levels, side=64):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()


@pytest.mark.parametrize(("amount", "beta"), [(0, 0.3), (0.5, math.sqrt(0.3 * 3)), (1, 3)])
def test_haze_of_known_depth_is_scattering(amount, beta):
    depth = known_depth(0, 0.2, 0.7, 1)
    black, white = (haze(flat(level, 4), amount, seeded(1), depth) for level in (0, 255))
    errors = white - black - torch.exp(-beta * depth)
    dim = white < 1  # light beyond white is cut off
    assert dim.float().mean() > 0.3 and errors[dim].abs().max() < 1.1 / 255


@pytest.mark.parametrize("amount", [0, 0.5, 1])
def test_haze_leaves_what_is_at_no_distance(amount, images):
    depth = F.pad(torch.ones(4, 1, 96, 24), (72, 0))
    out = haze(images, amount, seeded(), depth)
    near = slice(0, 72 - 2 * module.COARSE)
    assert (out - images)[..., near].abs().max() < 0.51 / 255
    assert not torch.equal(out[..., 72:], images[..., 72:])
    none = haze(images, amount, seeded(), torch.zeros_like(depth))
    assert (none - images).abs().max() < 0.51 / 255


def test_the_far_goes_to_the_light_of_the_air():
    x = flat(30, 1, 96).repeat(20, 1, 1, 1)
    x[..., 48:] = 220 / 255
    depth = torch.linspace(0, 1, 96).view(1, 1, 96, 1).expand(20, 1, 96, 96)
    steps = haze(x, 1, seeded(), depth).diff(dim=3)[..., 47].abs().mean((0, 1))
    assert (steps.diff() < 1 / 255).all() and steps[-1] < 0.1 * steps[0]


def test_unknown_depth_is_guessed(images):
    guessed = haze(images, 0.6, seeded())
    depth = torch.full((4, 1, 96, 96), math.nan)
    assert torch.equal(haze(images, 0.6, seeded(), depth), guessed)
    depth[1::2] = 0.5
    mixed = haze(images, 0.6, seeded(), depth)
    assert torch.equal(mixed[::2], guessed[::2])
    assert_pixels(mixed, images)
    assert not torch.equal(mixed[1::2], guessed[1::2])


def test_known_depth_takes_on_the_edges_of_the_image():
    """A coarse step six pixels beside that of the picture."""
    x = flat(50, 1, 96)
    x[..., 48:] = 200 / 255
    depth = F.avg_pool2d(F.pad((x[:, :1] > 0.5).float(), (12, 0, 0, 0), "replicate"), (1, 13), 1)
    t = torch.exp(-module._thickness(x, torch.ones(1, 1, 1, 1), seeded(), depth))
    slopes = t.diff(dim=3).abs().mean((0, 1, 2))
    assert slopes.argmax() == 47 and slopes[47] > 5 * slopes[49:].max()


# --- rain and snow ---


@pytest.mark.parametrize("weather", [rain, snow])
def test_rain_and_snow_brighten_what_is_dark(weather):
    for level in (0, 60, 100):
        dark = flat(level, 16)
        few, many = (weather(dark, amount, seeded()) - dark for amount in (0, 1))
        assert few.min() > -1e-6 and many.min() > -1e-6
        assert many.mean() > 5 * few.mean() > 0


def test_rain_falls_and_snow_floats():
    gray = flat(100, 24, 128)
    streaks, flakes = (kind(gray, 1, seeded()) for kind in (rain, snow))
    assert likeness(streaks, 4, 0).mean() > likeness(streaks, 0, 4).mean() + 0.3
    by_image = [(likeness(x, 4, 0) - likeness(x, 0, 4)).abs().mean() for x in (streaks, flakes)]
    assert by_image[0] > 3 * by_image[1]


def test_flakes_are_small_and_large():
    """Pixels six apart are alike where flakes are large, and only there."""
    near = torch.cat([likeness(snow(flat(60, 20, 128), 1, seeded(i)), 4, 4) for i in range(3)])
    assert near.min() < 0.2 and near.max() > 0.5


def test_streaks_are_sharp_and_blurred():
    rough = torch.cat([likeness(rain(flat(60, 20, 128), 1, seeded(i)), 0, 1) for i in range(3)])
    assert rough.min() < 0.6 and rough.max() > 0.85


@pytest.mark.parametrize("weather", [rain, snow])
def test_rain_and_snow_take_on_the_light_around_them(weather):
    dusk, day = (
        weather(flat(level, 40, 96), 1, seeded()).amax((2, 3)).mean() for level in (20, 150)
    )
    assert dusk < day - 0.03


@pytest.mark.parametrize("amount", [0, 0.5, 1])
def test_added_rain_only_brightens(amount, images, monkeypatch):
    monkeypatch.setattr(module, "ADDED_SHARE", 1)
    out = rain(images, amount, seeded())
    assert (out - images).min() > -0.51 / 255 and out.mean() > images.mean()
    monkeypatch.setattr(module, "_ambient", lambda x, rng, light, most: light)
    dark, gray = (rain(flat(level, 8), amount, seeded()) for level in (0, 80))
    error = gray - (dark + 80 / 255).clamp(max=1)
    assert error.abs().max() < 1.1 / 255, "the same light whatever is behind it"


def test_added_rain_is_as_heavy_as_the_test_sets_of_it(images, monkeypatch):
    """Rain100L has about 27 dB, Rain100H 13."""
    monkeypatch.setattr(module, "ADDED_SHARE", 1)
    images = images.repeat(12, 1, 1, 1)
    errors = [(rain(images, a, seeded()) - images).square().mean((1, 2, 3)) for a in (0, 0.3, 1)]
    light, middle, heavy = (-10 * torch.log10(error.median()).item() for error in errors)
    assert 29 < light < 37 and 22 < middle < 28 and 12 < heavy < 17


def test_some_rain_is_added_and_some_covers():
    """What is white stays white where light is added."""
    white = flat(255, 300, 24)
    added = (rain(white, 1, seeded()) == white).flatten(1).all(1)
    assert_share(added.sum().item(), 300, module.ADDED_SHARE)


def test_snow_is_of_many_kinds():
    """Flakes or long streaks, thick or thin."""
    snowfall = torch.cat([snow(flat(60, 20, 128), 0.7, seeded(i)) for i in range(3)])
    ways = ((4, 4), (4, -4), (0, 5), (5, 0))
    alike = torch.stack([likeness(snowfall, *way).mean(1) for way in ways])
    drawn_out = alike.amax(0) - alike.amin(0)
    assert drawn_out.min() < 0.1 and drawn_out.max() > 0.3
    risen = snowfall.mean((1, 2, 3)) - 60 / 255
    assert 0 < 5 * risen.min() < risen.max()


def test_snow_comes_in_gusts(monkeypatch):
    def unevenness():
        blocks = F.avg_pool2d(snow(flat(60, 40, 128), 0.7, seeded()).mean(1), 32).flatten(1)
        return blocks.std(1) / (blocks.mean(1) - 60 / 255)

    gusty = unevenness().median()
    monkeypatch.setattr(module, "_clouds", lambda x, rng, octaves: torch.zeros_like(x[:, :1]))
    assert gusty > 1.5 * unevenness().median()


def particles(coverage, radius, length, angle, softness, seeds=4):
    values = [torch.tensor(v).view(1, 1, 1, 1) for v in (radius, length, angle, softness)]
    blank = torch.zeros(16, 3, 96, 80)
    fields = [
        module._particles(blank, seeded(seed), torch.tensor(coverage), *values)
        for seed in range(seeds)
    ]
    return torch.cat(fields)


@pytest.mark.parametrize("coverage", [0.02, 0.05, 0.1])
@pytest.mark.parametrize(
    "shape", [(0.3, 5.0, 0.3, 2.0), (1.5, 30.0, 0.5, 1.0), (3.0, 0.0, 0.0, 1.0), (5.0, 15.0, 1, 5)]
)
def test_particles_cover_the_share_asked_for(coverage, shape):
    field = particles(coverage, *shape)
    assert field.min() >= 0 and field.max() <= 1
    assert 0.45 < field.mean().item() / coverage < 0.75, "from 0.3 to 1 translucent"
    assert 0.8 < (field > 0.15).float().mean().item() / coverage < 1.8


@pytest.mark.parametrize(
    ("angle", "along", "athwart"),
    [(0.0, (8, 0), (0, 8)), (math.pi / 2, (0, 8), (8, 0)), (math.pi / 4, (6, 6), (6, -6))],
)
def test_particles_are_drawn_out_along_the_angle(angle, along, athwart):
    field = particles(0.05, 1.0, 20.0, angle, 1.0, seeds=1)
    assert likeness(field, *along).mean() > 0.4
    assert likeness(field, *athwart).mean() < 0.1


def test_discs_are_brightest_at_their_rim():
    blank = torch.zeros(24, 3, 96, 80)
    values = [torch.tensor(v).view(1, 1, 1, 1) for v in (0.02, 9.0, 0.0, 0.0, 1.0)]
    for rim in (0.0, 0.7):
        field = module._particles(blank, seeded(), *values, rim=torch.full((24, 1, 1, 1), rim))
        discs = [image[image > 0.05 * image.max()] / image.max() for image in field]
        typical = np.median([disc.median().item() for disc in discs if len(disc)])
        assert (typical < 0.5) == (rim > 0)


def test_warping_moves_pixels_by_about_as_much_as_told():
    ramp = torch.linspace(0, 1, 101).expand(4, 1, 101, 101)
    by = torch.tensor([0.0, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    for x in (ramp, ramp.mT):
        moved = module._warped(x, seeded(), by, 4)
        assert (moved[0] - x[0]).abs().max() < 1e-5
        spreads = 100 * (moved - x)[..., 20:-20, 20:-20].std((1, 2, 3))
        assert torch.allclose(spreads[1:], 0.75 * by.flatten()[1:], rtol=0.35)
        assert moved.min() >= 0 and moved.max() <= 1


# --- degrade ---


def test_degrade_leaves_the_clean_exactly_as_they_are():
    x = torch.rand(500, 3, 12, 17, generator=seeded())
    before = x.clone()
    out = degrade(x, seeded(), clean=0.2)
    untouched = torch.tensor([torch.equal(a, b) for a, b in zip(x, out, strict=True)])
    assert abs(untouched.sum() - 100) < 4 * math.sqrt(500 * 0.2 * 0.8)
    assert_pixels(out[~untouched], x[~untouched])
    assert torch.equal(x, before)
    assert torch.equal(degrade(x, seeded(), clean=0.2), out)
    assert not torch.equal(degrade(x, seeded(1), clean=0.2), out)


def test_degrade_all_or_nothing():
    x = torch.rand(100, 3, 16, 16, generator=seeded())
    assert torch.equal(degrade(x, seeded(), clean=1), x)
    assert (degrade(x, seeded(), clean=0) != x).flatten(1).any(1).all()


def test_degrade_takes_odd_sides(odd):
    for seed in range(10):
        assert_pixels(degrade(odd, seeded(seed), clean=0), odd)


@pytest.fixture(scope="module")
def drawn():
    """What `degrade` did to each of 4000 images, as lists of names, the amounts drawn for each
    name, and the corners of the patches within the grid of JPEG blocks."""
    plans = [[] for _ in range(4000)]
    amounts = {name: [] for name in KINDS}
    corners = set()

    def recorder(name):
        def record(x, amount, rng):
            for image in (x[:, 0, -1, -1] * 4000).round().int().tolist():
                plans[image].append(name)
            amounts[name] += amount.tolist()
            corner = (x.shape[2] - 5, x.shape[3] - 6)
            assert name == "jpeg" or corner == (0, 0)
            if name == "jpeg":
                corners.add(corner)
            return x

        return record

    x = torch.rand(4000, 3, 5, 6, generator=seeded())
    x[:, 0, -1, -1] = torch.arange(4000) / 4000
    rng = seeded()
    with pytest.MonkeyPatch.context() as patch:
        recorders = {name: kind._replace(apply=recorder(name)) for name, kind in KINDS.items()}
        patch.setattr(module, "KINDS", recorders)
        out = torch.cat([degrade(part, rng, clean=0.2) for part in x.split(400)])
    assert torch.equal(out, x), "a patch comes back from where it was"
    return plans, amounts, corners


def assert_share(count, of, share):
    assert abs(count - of * share) <= 4 * math.sqrt(of * share * (1 - share))


def test_degrade_draws_every_kind_by_weight(drawn):
    degraded = [plan for plan in drawn[0] if plan]
    assert_share(len(degraded), 4000, 0.8)
    total = sum(kind.weight for kind in KINDS.values())
    for name, kind in KINDS.items():
        assert_share(sum(plan[0] == name for plan in degraded), len(degraded), kind.weight / total)


def test_degrade_draws_amounts_from_mild_to_severe(drawn):
    for name, amounts in drawn[1].items():
        shares = (np.array(amounts) - KINDS[name].mild) / (KINDS[name].severe - KINDS[name].mild)
        assert 0 <= shares.min() < 0.1 and 0.9 < shares.max() <= 1
        assert abs(shares.mean() - 0.5) < 4 / math.sqrt(12 * len(shares))


def test_half_of_camera_noise_is_in_files(drawn):
    plans = [plan for plan in drawn[0] if plan[:1] == ["camera"]]
    assert_share(sum(plan == ["camera", "jpeg"] for plan in plans), len(plans), 0.5)
    assert all(plan in (["camera"], ["camera", "jpeg"]) for plan in plans)


def test_a_fifth_are_mixtures_that_end_in_the_camera(drawn):
    others = [plan for plan in drawn[0] if plan[:1] != ["camera"]]
    plans = [plan for plan in others if plan and plan[0] != "jpeg"]  # nothing follows a file
    mixed = [plan for plan in plans if len(plan) > 1]
    assert_share(len(mixed), len(plans), 0.2)
    assert all(len(plan) == 2 and plan[0] != plan[1] for plan in mixed)
    assert {plan[0] for plan in mixed} >= WEATHER
    assert {plan[1] for plan in mixed if plan[0] in WEATHER} == CAMERA
    assert {plan[1] for plan in mixed} == CAMERA
    assert all(len(plan) == 1 for plan in drawn[0] if plan[:1] == ["jpeg"])


def test_degrade_moves_the_grid_of_blocks(drawn, monkeypatch):
    tops, lefts = map(set, zip(*drawn[2], strict=True))
    assert len(tops) > 12 and len(lefts) > 12 and max(tops | lefts) == 15 and len(drawn[2]) > 30

    def grid(x):
        """The columns, modulo 8, that the greatest steps lie between."""
        steps = x.diff(dim=3).abs().mean((0, 1, 2))
        return int(F.pad(steps, (0, 1)).view(-1, 8).mean(0).argmax())

    slope = torch.linspace(0.2, 0.8, 64).expand(2, 3, 64, 64)
    assert grid(jpeg(slope, 5, seeded())) == 7
    monkeypatch.setattr(module, "KINDS", {"jpeg": KINDS["jpeg"]._replace(mild=5, severe=5)})
    assert len({grid(degrade(slope, seeded(seed), clean=0)) for seed in range(30)}) > 5


def test_degrade_hands_every_image_its_depth(monkeypatch):
    x = torch.rand(60, 3, 8, 8, generator=seeded())
    depth = torch.rand(60, 1, 1, 1, generator=seeded(1)).expand(-1, 1, 8, 8)
    handed = []

    def record(part, amount, rng, depth=None):
        handed.append((part, depth))
        return part

    monkeypatch.setitem(KINDS, "haze", KINDS["haze"]._replace(apply=record))
    out = degrade(x, seeded(), 0, depth)
    assert torch.equal(out, degrade(x, seeded(), 0)), "of use to haze alone"
    with_depth = [(part, d) for part, d in handed if d is not None]
    assert len(with_depth) == len(handed) / 2 > 0
    for part, d in with_depth:
        members = [(x == image).flatten(1).all(1).nonzero().item() for image in part]
        assert torch.equal(d, depth[members])


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_on_top_comes_a_share_of_what_a_camera_adds(share, monkeypatch):
    x = torch.rand(800, 3, 5, 6, generator=seeded())
    counts = dict.fromkeys(KINDS, 0)

    def counter(name):
        def count(part, amount, rng):
            counts[name] += len(part)
            return 1 - part

        return count

    counters = {name: kind._replace(apply=counter(name)) for name, kind in KINDS.items()}
    monkeypatch.setattr(module, "KINDS", counters)
    out = on_top(x, seeded(), share)
    untouched = (out == x).flatten(1).all(1)
    assert torch.equal(out[~untouched], 1 - x[~untouched])
    assert_share((~untouched).sum().item(), 800, share)
    assert {name for name, count in counts.items() if count} == (CAMERA if share else set())
    assert sum(counts.values()) == (~untouched).sum()


def test_on_top_leaves_the_others_exactly_as_they_are():
    x = torch.rand(300, 3, 12, 17, generator=seeded())  # not of 8 bits
    before = x.clone()
    out = on_top(x, seeded())
    untouched = (out == x).flatten(1).all(1)
    assert_share((~untouched).sum().item(), 300, module.MIXED_SHARE)
    assert_pixels(out[~untouched], x[~untouched])
    assert torch.equal(x, before) and torch.equal(on_top(x, seeded()), out)


def test_faded_images_are_of_other_tones():
    """Every channel goes from a lifted black to a lowered white, in the same order; the others keep their
    pixels."""
    x = torch.linspace(0, 1, 256).round(decimals=4).expand(400, 3, 4, 256).mul(255).round() / 255
    y = faded(x, seeded(0), share=0.5)
    kept = (y == x).flatten(1).all(1)
    assert kept.float().mean() == pytest.approx(0.5, abs=0.08)
    toned = y[~kept]
    assert bool((toned.diff(dim=-1) >= 0).all()) and torch.equal(toned, (toned * 255).round() / 255)
    black, white = toned[..., 0].mean((1, 2)), toned[..., -1].mean((1, 2))
    assert black.min() < 0.05 and 0.15 < black.max() < 0.26
    assert white.min() > 0.85 and white.max() > 0.98
    middle = toned[..., 128].mean((1, 2)) - (black + white) / 2
    assert middle.min() < -0.05 and middle.max() > 0.05
    assert (toned[:, 0] - toned[:, 2]).abs().max() > 0.02  # tinted
    assert torch.equal(faded(x, seeded(0), share=0.0), x)


def test_rehaze_is_haze_of_random_amounts_and_then_the_camera():
    depth = known_depth(*torch.linspace(0.2, 1, 200).tolist(), side=16)
    x = flat(40, 200, 16)
    hazed = rehaze(x, depth, seeded())
    assert torch.equal(rehaze(x, depth, seeded()), hazed)
    assert_pixels(hazed, x)
    assert (hazed != x).flatten(1).any(1).all()
    rough = hazed.std((2, 3)).amax(1) > 1e-3  # a blur and a file do not show here
    assert_share(rough.sum().item(), 200, module.MIXED_SHARE / 2)
    shift = (hazed - x).mean((1, 2, 3)) / depth[:, 0, 0, 0]
    assert shift.max() > 5 * shift.min(), "of all amounts"


# --- apply ---


def test_apply_takes_names_and_amounts(lake):
    x = lake[..., :100, :130]
    assert torch.equal(apply(x, "clean", seeded()), x)
    assert torch.equal(apply(x, "jpeg:40", seeded()), jpeg(x, 40, seeded()))
    assert torch.equal(apply(x, "jpeg:40+clean", seeded()), jpeg(x, 40, seeded()))
    gray = flat(128, 2, 128)
    assert (255 * apply(gray, "noise:25", seeded())).std().item() == pytest.approx(25, rel=0.02)
    for spec in (*KINDS, "rain+noise:10", "haze+camera+jpeg:75", "clean+snow:0.5"):
        out = apply(x, spec, seeded())
        assert_pixels(out, x)
        assert torch.equal(apply(x, spec, seeded()), out) and not torch.equal(out, x)


def test_apply_draws_an_amount_for_every_image():
    spreads = apply(flat(128, 16), "noise", seeded()).std((1, 2, 3)) * 255
    assert spreads.min() < 15 and 40 < spreads.max() < 57


def test_apply_goes_from_first_to_last():
    gray = flat(128, 1, 96)
    last, first = (apply(gray, s, seeded()).std() for s in ("blur:3+noise:40", "noise:40+blur:3"))
    assert last > 5 * first > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fog", "fog.*noise, camera"),
        ("", "no degradation"),
        ("haze+", "no degradation"),
        ("rain,snow", "rain,snow"),
        ("Noise:10", "Noise"),
        ("noise+fog:1", "fog"),
        ("noise:x", "noise is 0 to 255, not 'x'"),
        ("noise:", "noise"),
        ("noise:-1", "noise"),
        ("noise:256", "noise"),
        ("noise:nan", "nan"),
        ("noise:inf", "inf"),
        ("noise:1:2", "1:2"),
        ("jpeg:0", "jpeg is 1 to 100, not '0'"),
        ("jpeg:101", "jpeg"),
        ("haze:2", "haze is 0 to 1, not '2'"),
        ("blur:4", "blur"),
        ("clean+haze:2", "haze"),
        ("clean:1", "clean"),
    ],
)
def test_apply_refuses_what_it_does_not_know(spec, message):
    with pytest.raises(AicError, match=message):
        apply(flat(128, 1, 16), spec, seeded())


# --- the contact sheet ---


def test_contact_sheet_shows_every_kind(lake):
    images = torch.cat([lake[..., i : i + 48, i : i + 64] for i in (0, 60, 120, 180)])
    images = (images * 255).round().byte()
    sheet = contact_sheet(images, seed=3)
    rows = len(sheet) // (48 + 16)
    assert rows > len(KINDS)
    assert sheet.dtype == np.uint8 and sheet.shape == (rows * (48 + 16), 4 * (64 + 4), 3)
    cells = sheet.reshape(rows, 64, 4, 68, 3)[:, 14:62, :, :64].swapaxes(1, 2)
    clean = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(cells[list(KINDS).index("noise"), 0], clean[0])
    for (name, kind), row in zip(KINDS.items(), cells, strict=False):
        errors = np.square(row.astype(float) - clean).mean((1, 2, 3))
        assert errors[-1] > 5, name
        assert errors[0] < 600, f"{name} {kind.mild} is mild"
    assert np.array_equal(contact_sheet(images, seed=3), sheet)
    assert not np.array_equal(contact_sheet(images, seed=4), sheet)


# --- on a GPU ---


@pytest.mark.cuda
@pytest.mark.parametrize("name", [*KINDS, "degrade"])
def test_the_same_on_cuda(name, odd):
    x = odd.cuda()

    def run(amount, seed):
        if name == "degrade":
            return degrade(x, seeded(seed, "cuda"), clean=0)
        return KINDS[name].apply(x, amount, seeded(seed, "cuda"))

    kind = KINDS.get(name, KINDS["noise"])
    for amount in (kind.mild, kind.severe, torch.tensor([kind.mild, kind.severe, kind.mild])):
        out = run(amount, 0)
        assert out.device == x.device
        assert_pixels(out, x)
        assert torch.equal(run(amount, 0), out)
    if name not in DRAWN and name != "degrade":
        ours = KINDS[name].apply(odd, kind.severe, seeded())
        assert psnr(run(kind.severe, 0).cpu(), ours) > 50


@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (9, 5), (2, 2)])
def test_tiny_images(sides):
    x = torch.rand(2, 3, *sides, generator=seeded())
    for name in KINDS:
        out = apply(x, name, seeded(1))
        assert out.shape == x.shape and out.isfinite().all()
