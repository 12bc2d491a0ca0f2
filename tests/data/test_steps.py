from pathlib import Path

import numpy as np
import pytest

from flyweight.data.column_steps import JoinColumns, SelectColumns
from flyweight.data.image_steps import CenterCrop, DecodeImage, Resize, ToChannelsFirst, read_image
from flyweight.data.steps import Cast, Normalize, Rename, Rescale
from flyweight.errors import InputError


def test_rescale_gives_float32_of_the_product():
    out = Rescale(0.5)({"x": np.array([[2, 4]], np.uint8)})["x"]
    assert out.dtype == np.float32
    assert out.tolist() == [[1.0, 2.0]]


def test_normalize_takes_one_mean_a_channel_on_axis_1():
    images = np.ones((2, 3, 2, 2), np.float32)
    out = Normalize((1.0, 0.0, -1.0), (1.0, 2.0, 4.0))({"x": images})["x"]
    np.testing.assert_allclose(out[0, :, 0, 0], [0.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4), "mean and std hold 2 values, and axis 1, of the channels, has 4: give one value, or 4$"),
        (
            (2, 3, 5, 5),
            "mean and std hold 2 values, and axis 1, of the channels, has 3: give one value, or 3$",
        ),
        ((2, 5, 5, 2), "--preprocess channels_last=true"),
        ((2,), "needs channels or columns on axis 1$"),
    ],
)
def test_normalize_refuses_another_number_of_channels(shape, message):
    with pytest.raises(InputError, match=message) as raised:
        Normalize((0.0, 0.0), (1.0, 1.0))({"x": np.ones(shape, np.float32)})
    assert str(raised.value).startswith(
        "input 'x' has shape (2, " if len(shape) > 1 else "input 'x' has shape"
    )


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (0.0,)), ((0.0,), (1.0, 1.0)), ((float("nan"),), (1.0,)), ((), ())]
)
def test_normalize_refuses_values_it_cannot_divide_by(mean, std):
    with pytest.raises(ValueError, match=r"mean|std"):
        Normalize(mean, std)


def test_select_columns_makes_a_matrix_in_its_own_order_and_drops_the_rest():
    columns = {"id": np.arange(2), "b": np.array([3, 4]), "a": np.array([1.0, 2.0], np.float32)}
    out = SelectColumns(("a", "b"), integers=("id",))(columns)
    assert set(out) == {"x", "id"}
    assert out["x"].tolist() == [[1, 3], [2, 4]]
    assert out["x"].dtype == np.float32
    assert out["id"].dtype == np.int64


def test_select_columns_names_the_missing_column():
    with pytest.raises(InputError, match="needs a column 'b'"):
        SelectColumns(("a", "b"))({"a": np.zeros(2)})


def test_cast_to_integers_refuses_fractions():
    with pytest.raises(InputError, match="example 1 is not whole"):
        Cast("int64")({"x": np.array([1.0, 1.5])})


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_are_read_as_their_upper_eight(tmp_path, suffix):
    from PIL import Image

    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / f"eight.{suffix}")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"sixteen.{suffix}")
    for mode in ("L", "RGB"):
        eight, sixteen = (read_image(tmp_path / f"{name}.{suffix}", mode) for name in ("eight", "sixteen"))
        np.testing.assert_array_equal(sixteen, eight)


def test_sixteen_bits_in_a_portable_graymap_are_read_as_their_upper_eight(tmp_path):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    (tmp_path / "grey.pgm").write_bytes(b"P5 8 8 65535\n" + (grey * 257).astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "grey.pgm", "L")[..., 0], grey)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_without_a_known_range_are_refused(tmp_path, dtype):
    from PIL import Image

    Image.fromarray(np.full((4, 4), 300, dtype)).save(tmp_path / "wide.tif")
    with pytest.raises(InputError, match=r"wide\.tif: .*; save it with 8 bits a channel"):
        read_image(tmp_path / "wide.tif", "L")


def test_a_cast_of_an_input_under_another_name_says_which_the_model_takes():
    with pytest.raises(InputError, match="the model takes an input 'x', and the data have pixels"):
        Cast("float32", ("x",))({"pixels": np.ones(2)})


def test_text_where_numbers_are_needed_is_named():
    with pytest.raises(InputError, match="input 'x', example 0 is text"):
        Cast()({"x": ["abc"]})


def test_image_files_where_numbers_are_needed_are_named():
    with pytest.raises(InputError, match="is an image file"):
        Rescale(1.0)({"x": [Path("a.png")]})


def test_images_of_different_sizes_cannot_be_stacked():
    images = [np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)]
    with pytest.raises(InputError, match=r"example 1 is \(3, 2, 3\)"):
        ToChannelsFirst()({"x": images})


def test_rename_needs_a_single_column():
    assert list(Rename("pixels")({"image": np.zeros(1)})) == ["pixels"]
    with pytest.raises(InputError, match="has one input, 'pixels'"):
        Rename("pixels")({"a": np.zeros(1), "b": np.zeros(1)})


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_decode_gives_the_pixels_of_a_file(tmp_path, mode, channels):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (image,) = DecodeImage(mode)({"image": [tmp_path / "a.png"]})["image"]
    assert image.shape == (5, 4, channels)
    if mode == "RGB":
        np.testing.assert_array_equal(image, pixels)


def test_decode_names_an_unreadable_file(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png"):
        DecodeImage()({"image": [tmp_path / "broken.png"]})


def test_decode_names_a_truncated_file(tmp_path):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "cut.png"
    )
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut\.png"):
        DecodeImage()({"image": [tmp_path / "cut.png"]})


def test_decode_takes_arrays_of_pixels_and_refuses_floats():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(DecodeImage()({"x": pixels})["x"], pixels)
    with pytest.raises(InputError, match="uint8 with 3 channels"):
        DecodeImage()({"x": pixels.astype(np.float32)})


@pytest.mark.parametrize(("size", "shape"), [(4, (4, 8, 3)), ((6, 5), (6, 5, 3))])
def test_resize_keeps_the_aspect_ratio_only_for_a_shortest_side(size, shape):
    (image,) = Resize(size)({"x": [np.zeros((8, 16, 3), np.uint8)]})["x"]
    assert image.shape == shape


def test_resize_is_pillows():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 1), dtype=np.uint8)
    (image,) = Resize((4, 4))({"x": [pixels]})["x"]
    expected = Image.fromarray(pixels[..., 0]).resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image[..., 0], np.asarray(expected))


def test_crop_takes_the_middle_and_refuses_smaller_images():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    (cropped,) = CenterCrop(2, 2)({"x": [image]})["x"]
    assert cropped[..., 0].tolist() == [[5, 6], [9, 10]]
    with pytest.raises(InputError, match="4 x 4 pixels, the crop 5 x 5"):
        CenterCrop(5, 5)({"x": [image]})


def test_channels_first_adds_a_missing_channel():
    assert ToChannelsFirst()({"x": np.zeros((2, 5, 4), np.uint8)})["x"].shape == (2, 1, 5, 4)
    assert ToChannelsFirst()({"x": np.zeros((2, 5, 4, 3), np.uint8)})["x"].shape == (2, 3, 5, 4)


def test_join_columns_makes_the_matrix_of_a_table_in_its_order():
    columns = {"b": np.array([3, 4]), "a": np.array([1.0, 2.0], np.float32)}
    assert JoinColumns("x", 2)(columns)["x"].tolist() == [[3, 1], [4, 2]]


def test_join_columns_lets_a_matrix_pass():
    columns = {"x": np.ones((2, 5), np.float32)}
    assert JoinColumns("x", 5)(columns) is columns


@pytest.mark.parametrize("count", [1, 3])
def test_join_columns_names_both_counts(count):
    columns = {"a": np.zeros(4), "b": np.zeros(4)}
    with pytest.raises(InputError, match=f"takes {count} features, the data have 2 columns of numbers"):
        JoinColumns("x", count)(columns)


@pytest.mark.parametrize(("name", "count"), [("", 2), ("x", 0), ("x", 100_000)])
def test_join_columns_refuses_what_is_no_matrix(name, count):
    with pytest.raises(ValueError, match=r"name|count"):
        JoinColumns(name, count)
