import pytest

from lrp_cli.errors import UsageError
from lrp_cli.models import ClassIndex, Contrast, Predicted, Rest, Top, parse_target, resolve_class
from lrp_cli.models.labels import imagenet_labels

LABELS = ("tabby", "tiger cat", "tiger", "Egyptian cat", "crane", "Crane", "goldfish")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("0", 0),
        (" 6 ", 6),
        ("tabby", 0),
        ("TABBY", 0),
        ("tiger", 2),  # exact, though it also begins "tiger cat"
        ("tiger c", 1),
        ("egyptian", 3),
        ("gold", 6),
        ("crane", 4),
        ("Crane", 5),
    ],
)
def test_resolve_class(text: str, index: int) -> None:
    assert resolve_class(text, LABELS) == index


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("7", "class index 7 is out of range: the model's classes are 0 to 6"),
        ("-1", "class index -1 is out of range"),
        ("CRANE", r"is the name of 2 classes, give the index: 4 \(crane\), 5 \(Crane\)"),
        ("t", r"begins the names of 3 classes, give the index: 0 \(tabby\), 1 \(tiger cat\), 2 \(tiger\)"),
        ("tabbi", "no class is called 'tabbi'.*did you mean 'tabby'"),
        ("cat", "no class is called 'cat'.*did you mean 'tiger cat' or 'Egyptian cat'"),
        ("", "no class is called ''"),
        ("xyzzy", "no class is called 'xyzzy'; give predicted, top:K, an index or a name$"),
    ],
)
def test_unresolvable_classes(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        resolve_class(text, LABELS)
    assert "\n" not in str(caught.value)


def test_every_name_of_imagenet_resolves_to_itself() -> None:
    labels = imagenet_labels()
    assert [resolve_class(label, labels) for label in labels] == list(range(1000))
    with pytest.raises(UsageError, match=r"2 classes, give the index: 264 \(Cardigan\), 474 \(cardigan\)"):
        resolve_class("CARDIGAN", labels)


def test_a_name_given_to_two_classes_is_ambiguous() -> None:
    with pytest.raises(UsageError, match=r"'crane' is the name of 2 classes, give the index: 0 \(crane\), 2 \(crane\)"):
        resolve_class("crane", ["crane", "heron", "crane"])


def test_long_lists_of_candidates_are_cut() -> None:
    with pytest.raises(UsageError, match=r"begins the names of 100 classes.*class 4\) and 95 more$"):
        resolve_class("class", [f"class {index}" for index in range(100)])


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("predicted", Predicted()),
        ("Predicted", Predicted()),
        ("top:1", Top(1)),
        ("top:7", Top(7)),
        ("TOP: 3", Top(3)),
        ("2", ClassIndex(2)),
        ("goldfish", ClassIndex(6)),
    ],
)
def test_parse_target(text: str, target: object) -> None:
    assert parse_target(text, LABELS) == target


@pytest.mark.parametrize("text", ["top:0", "top:8", "top:-1", "top:", "top:two", "top:1.5", "top:99999999999"])
def test_top_needs_a_number_in_range(text: str) -> None:
    with pytest.raises(UsageError, match=f"target '{text}': K in top:K must be a whole number from 1 to 7"):
        parse_target(text, LABELS)


@pytest.mark.parametrize(
    ("text", "target", "versus"),
    [
        ("tabby vs goldfish", ClassIndex(0), ClassIndex(6)),
        ("Tiger VS egyptian cat", ClassIndex(2), ClassIndex(3)),
        (" 3  vs\t1 ", ClassIndex(3), ClassIndex(1)),
        ("predicted vs rest", Predicted(), Rest()),
        ("goldfish vs Rest", ClassIndex(6), Rest()),
        ("top:3 vs rest", Top(3), Rest()),
        ("top:2 vs predicted", Top(2), Predicted()),
        ("0 vs predicted", ClassIndex(0), Predicted()),
        ("predicted vs 0", Predicted(), ClassIndex(0)),
    ],
)
def test_contrasts(text: str, target: object, versus: object) -> None:
    assert parse_target(text, LABELS) == Contrast(target, versus)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tabby vs 0", "target 'tabby vs 0' holds a class against itself"),
        ("predicted vs predicted", "holds a class against itself"),
        ("top:1 vs predicted", "holds a class against itself"),
        ("tabbi vs goldfish", "no class is called 'tabbi'.*did you mean 'tabby'"),
        (
            "tabby vs goldfisch",
            "no class is called 'goldfisch'; give rest, predicted, an index.*did you mean 'goldfish'",
        ),
        ("tabby vs top:2", "no class is called 'top:2'; give rest, predicted, an index or a name"),
        ("rest vs tabby", "no class is called 'rest'; give predicted, top:K, an index or a name"),
        ("top:9 vs tabby", "target 'top:9': K in top:K must be a whole number from 1 to 7"),
        ("tabby vs 7", "class index 7 is out of range"),
        ("tabby vs ", "no class is called 'tabby vs '"),
        ("tabby vs. goldfish", "no class is called 'tabby vs. goldfish'"),
    ],
)
def test_contrasts_that_make_no_sense(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_target(text, LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("army vs navy", ClassIndex(0)),
        ("Army vs Navy", ClassIndex(0)),
        ("army vs navy vs rest", Contrast(ClassIndex(0), Rest())),
        ("navy vs army vs navy", Contrast(ClassIndex(2), ClassIndex(0))),
        ("army vs navy vs navy", Contrast(ClassIndex(0), ClassIndex(2))),
        ("navy vs rest", Contrast(ClassIndex(2), Rest())),
    ],
)
def test_class_names_with_a_vs_of_their_own(text: str, target: object) -> None:
    assert parse_target(text, ("army vs navy", "cat", "navy")) == target
