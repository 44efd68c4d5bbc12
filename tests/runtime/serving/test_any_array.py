"""Arrays of any dtype, shape, stride and layout: an answer by the pixels alone, or a typed error; never written to."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekiln.runtime.backends import CPU_BACKENDS, open_session
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import EdgekilnError, ImageError, InputError, NonFiniteError
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Selection

HEIGHT, WIDTH = 4, 8  # of the tiny model
CONTRACT = Contract(height=HEIGHT, width=WIDTH, classes=("red", "green", "blue"))
QUIET = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", params=sorted(CPU_BACKENDS))
def session(request, mean_model):
    session = open_session(request.param, mean_model, threads=1)
    yield session
    session.close()


@pytest.fixture(scope="module")
def classifier(session):
    return Classifier(session, CONTRACT, Selection("fp32", session.backend, "fp32", "the one there is"))


def likely(shape):
    """Sizes near those that are right, so that not everything is refused."""
    return st.tuples(*(st.sampled_from(sorted({0, 1, size, size + 1, 3})) for size in shape))


dtypes = st.one_of(
    st.just(np.dtype(np.uint8)),
    hnp.scalar_dtypes(),
    hnp.nested_dtypes(),
    st.just(np.dtype(object)),
    st.just(np.dtype("S3")),
)
shapes = st.one_of(
    likely((2, HEIGHT, WIDTH, 3)),
    likely((HEIGHT, WIDTH, 3)),
    hnp.array_shapes(min_dims=0, max_dims=6, max_side=5),
)
RIGHT = {3: (HEIGHT, WIDTH, 3), 4: (2, HEIGHT, WIDTH, 3)}


@st.composite
def layouts(draw, dtype, shape):
    """An array of that shape in memory of any order: transposed, reversed, stepped over, broadcast, read-only."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    stored = [shape[axis] * steps[axis] for axis in order]
    size = int(np.prod(stored, dtype=np.int64))
    base = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size).astype(np.uint8)
    array = base.reshape(stored) if dtype == np.uint8 else np.zeros(stored, dtype)
    array = array.transpose(np.argsort(order)) if shape else array
    view = array[tuple(slice(None, None, step) for step in steps)] if shape else array
    for axis in range(len(shape)):
        if draw(st.booleans()):
            view = np.flip(view, axis)
    if draw(st.booleans()):
        view = view.view()
        view.flags.writeable = False
    return view


@st.composite
def arrays(draw):
    shape = draw(shapes)
    if draw(st.integers(0, 9)) == 0 and shape:
        return np.broadcast_to(np.uint8(7), shape)  # one byte of memory, and no stride
    return draw(layouts(draw(dtypes), shape))


def bytes_of(array):
    return array.tobytes() if not array.dtype.hasobject else array.copy()


@QUIET
@given(array=arrays())
def test_predict_gives_an_answer_or_an_image_error(classifier, array):
    before = bytes_of(array)
    try:
        answer = classifier.predict(array)
    except ImageError as error:
        assert error.reason == "type"  # noqa: PT017 # an answer is as good
        assert not (array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size)
    else:
        np.testing.assert_array_equal(answer.logits, classifier.predict(np.array(array, order="C")).logits)
    assert np.array_equal(bytes_of(array), before)


@QUIET
@given(array=arrays())
def test_a_session_gives_logits_or_an_input_error(session, array):
    before = bytes_of(array)
    right = array.dtype == np.uint8 and array.ndim == 4 and array.shape[1:] == (HEIGHT, WIDTH, 3)
    try:
        logits = session.run(array)
    except InputError:
        assert not right
    else:
        assert right
        assert (logits.shape, logits.dtype) == ((len(array), 3), np.float32)
        np.testing.assert_allclose(
            logits, array.mean(axis=(1, 2)), atol=1e-4
        )  # a mean of 32 pixels: exact but for one rounding
    assert np.array_equal(bytes_of(array), before)


@QUIET
@given(data=st.data(), dims=st.sampled_from([3, 4]))
def test_layouts_of_right_arrays_count_by_their_pixels(classifier, session, data, dims):
    """The two above refuse most of what they draw; here everything is right but the order in memory."""
    array = data.draw(layouts(np.dtype(np.uint8), RIGHT[dims]))
    before = array.tobytes()
    whole = np.array(array, order="C")
    if dims == 3:
        np.testing.assert_array_equal(classifier.predict(array).logits, classifier.predict(whole).logits)
    else:
        np.testing.assert_array_equal(session.run(array), session.run(whole))
    assert array.tobytes() == before


class Odd(np.ndarray):
    pass


@pytest.mark.parametrize(
    "kind",
    [lambda a: a.view(Odd), np.ma.masked_array, lambda a: a.view(np.recarray)],
    ids=["subclass", "masked", "rec"],
)
def test_subclasses_are_arrays_or_typed_errors(classifier, kind):
    plain = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    try:
        answer = classifier.predict(kind(plain))
    except EdgekilnError:
        return
    np.testing.assert_array_equal(answer.logits, classifier.predict(plain).logits)


# -- answers that are none


@pytest.fixture(scope="module", params=sorted(CPU_BACKENDS))
def dividing(request, build_model):
    """A classifier whose logits are infinite for a black picture: 1 / mean."""
    session = open_session(request.param, build_model(tail="Reciprocal"), threads=1)
    yield Classifier(session, CONTRACT, Selection("fp32", session.backend, "fp32", "the one there is"))
    session.close()


BRIGHT, BLACK = np.full((HEIGHT, WIDTH, 3), 9, np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def test_a_non_finite_answer_names_its_picture(dividing):
    for pictures, images in [([BLACK], (0,)), ([BRIGHT, BRIGHT, BLACK, BRIGHT, BLACK], (2, 4))]:
        with pytest.raises(
            NonFiniteError, match=rf"for image {images[0]} of the batch \({len(images)} in all\)"
        ) as caught:
            dividing.predict_batch(pictures)
        assert caught.value.images == images
    assert dividing.predict(BRIGHT).score > 0


def test_a_non_finite_answer_beyond_one_call_of_the_library_is_counted_from_the_first(dividing):
    frames = np.stack([BRIGHT] * 300 + [BLACK] + [BRIGHT])
    with pytest.raises(NonFiniteError, match="for image 300 of the batch") as caught:
        dividing.session.run(frames)
    assert caught.value.images == (300,)


def test_in_a_stream_the_picture_is_counted_from_its_beginning(dividing):
    answers = dividing.predict_stream([BRIGHT, b"no picture", BRIGHT, BLACK, BRIGHT])
    for _ in range(3):
        next(answers)
    with pytest.raises(NonFiniteError, match="In the stream: image 3") as caught:
        next(answers)
    assert caught.value.images == (3,)
