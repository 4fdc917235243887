from shards.classes import IMAGENETTE_WNIDS, recognise


def test_imagenette_is_recognised_whatever_the_order():
    assert recognise(IMAGENETTE_WNIDS[::-1]) == "imagenette"


def test_a_thousand_wordnet_ids_are_imagenet():
    wnids = [f"n{number:08d}" for number in range(1000)]
    assert recognise(wnids) == "imagenet-1k"
    assert recognise(wnids[:999]) is None
    assert recognise([*wnids[:999], "cat"]) is None


def test_other_classes_are_not_recognised():
    assert recognise(["cat", "dog"]) is None
    assert recognise([f"n{number:08d}" for number in range(100)]) is None
