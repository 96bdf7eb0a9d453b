from importlib.metadata import EntryPoint

import pytest
import torch
from tiny_models import SAMPLER, pipeline, quantized, recorded

import dqlab
from dqlab.errors import InvalidInputError, NotApplicableError, UnknownNameError
from dqlab.layers import quantizers
from dqlab.methods import Method, Paper, Recipe, registry
from dqlab.methods.method import MOMENTS, SetRanges
from dqlab.methods.recipe import as_recipe, plain_option, title
from dqlab.models.families import family_of


class Halving(Method):
    """Halves every activation range."""

    slug = "halving"
    paper = Paper("Halving", "Venue 2020", "2001.00001")
    category = "test"

    def __init__(self, factor: float = 0.5):
        self.factor = factor

    def ranges(self, job, sites):
        super().ranges(job, sites)
        for site in sites:
            if not site.endswith(".weight"):
                quantizer = quantizers(job.denoiser)[site]
                quantizer.scale.mul_(self.factor)


class Reversed(Method):
    """Calibrates on fewer rows and sets activation ranges before weight ranges."""

    slug = "reversed-order"
    paper = Paper("Reversed", "Venue 2021", "2101.00001")
    category = "test"
    bits = {"weights": (4, 1.99), "activations": (8,)}  # noqa: RUF012

    def calibrate(self, job):
        return super().calibrate(job)[:5]

    def fit(self, job):
        return [SetRanges("activation"), SetRanges("weight")]

    def unfit(self, family):
        return "it has no U" if "ancestral" in family.name else None


class Shipped(EntryPoint):
    """An entry point that yields a class, or raises."""

    def load(self):
        found = {"halving": Halving, "reversed_order": Reversed, "rtn": Halving2}
        return found[self.name]


class Halving2(Halving):
    slug = "rtn"


@pytest.fixture
def plugins(monkeypatch):
    """Install plug-ins by entry-point name."""

    def install(*names):
        points = [Shipped(name, f"outside:{name}", "dqlab.methods") for name in names]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry.all_methods.cache_clear()

    yield install
    registry.all_methods.cache_clear()


def test_moments_are_what_a_class_overrides() -> None:
    assert Method.moments() == ()
    assert registry.find("rtn")().acts() == ()
    assert Halving.moments() == ("place",)
    assert Reversed.moments() == ("calibrate", "fit")


def test_recipes_combine_by_moment(plugins) -> None:
    plugins("halving", "reversed_order")
    both = dqlab.recipe("halving") | dqlab.recipe("reversed-order")
    assert both.slug == "halving | reversed-order"
    assert both.to_dict() == {
        "methods": ["halving", "reversed-order"],
        "options": [{}, {}],
        "moments": {
            "place": "halving", "calibrate": "reversed-order", "fit": "reversed-order",
        },
    }  # fmt: skip
    assert (dqlab.recipe("halving") | "reversed-order").to_dict() == both.to_dict()
    assert both.only("place").to_dict() == dqlab.recipe("halving").to_dict()
    assert both.without("place").to_dict() == dqlab.recipe("reversed-order").to_dict()
    assert both.without("fit").slug == "halving | reversed-order"
    assert both.only().to_dict() == {"methods": ["rtn"], "options": [{}], "moments": {}}
    assert (dqlab.recipe("rtn") | dqlab.recipe("halving")).to_dict()["moments"] == {
        "place": "halving"
    }


def test_a_clash_names_both_and_the_fix(plugins) -> None:
    plugins("halving", "reversed_order")
    both = dqlab.recipe("halving") | dqlab.recipe("reversed-order")
    with pytest.raises(InvalidInputError) as raised:
        _ = dqlab.recipe("reversed-order") | both
    message = str(raised.value)
    assert "reversed-order and reversed-order both act at the moment 'calibrate'" in message
    with pytest.raises(InvalidInputError, match=r"halving and halving.*'place'.*without\('place'"):
        _ = dqlab.recipe("halving") | dqlab.recipe("halving")
    mended = dqlab.recipe("halving").without("place") | dqlab.recipe("halving")
    assert mended.to_dict()["moments"] == {"place": "halving"}


@pytest.mark.parametrize("call", ["only", "without"])
def test_unknown_moments_are_refused(call) -> None:
    with pytest.raises(UnknownNameError, match="'placing'; there are calibrate, reshape, place"):
        getattr(dqlab.recipe("rtn"), call)("placing")


def test_only_names_moments_the_method_acts_at(plugins) -> None:
    plugins("halving", "reversed_order")
    both = dqlab.recipe("halving") | dqlab.recipe("reversed-order")
    assert both.only("fit", "place").owners.keys() == {"fit", "place"}
    for given in (dqlab.recipe("halving"), both.without("fit")):
        with pytest.raises(InvalidInputError, match=r"does not act at the moment 'fit'; it acts"):
            given.only("fit")
    with pytest.raises(InvalidInputError, match="at none: it is plain rounding"):
        dqlab.recipe("rtn").only("place")


def test_without_what_it_does_not_do_changes_nothing(plugins) -> None:
    plugins("halving")
    halving = dqlab.recipe("halving")
    assert halving.without("fit").to_dict() == halving.to_dict()
    assert halving.without(*MOMENTS).to_dict() == dqlab.recipe("rtn").to_dict()


def test_options_are_part_of_the_recipe(plugins) -> None:
    plugins("halving", "reversed_order")
    usual, other = dqlab.recipe("halving"), dqlab.recipe("halving", factor=0.25)
    assert dqlab.recipe("halving", factor=0.5).to_dict() == usual.to_dict()
    assert other.to_dict()["options"] == [{"factor": 0.25}]
    both = (other | "reversed-order").to_dict()
    assert both["options"] == [{"factor": 0.25}, {}]
    assert title(both) == "halving(factor=0.25) | reversed-order"
    assert title(usual.to_dict()) == "halving"
    assert usual.methods[0].options == {}


@pytest.mark.parametrize(
    ("value", "kept"),
    [((1, 2), [1, 2]), (torch.float16, "torch.float16"), (float("nan"), "nan"), (True, True)],
)
def test_any_option_can_be_recorded(value, kept) -> None:
    assert plain_option(value) == kept


@pytest.mark.parametrize("value", ["a", None, True, [0.5], 1j])
def test_options_of_another_kind_are_refused(plugins, value) -> None:
    plugins("halving")
    with pytest.raises(InvalidInputError, match=r"halving: factor=.* is a \w+; it takes float"):
        dqlab.recipe("halving", factor=value)


@pytest.mark.parametrize(
    ("options", "fine"),
    [
        ({"steps": None, "samples": 4}, True), ({"steps": 2.0}, False), ({"steps": True}, False),
        ({"split": False}, True), ({"split": 1}, False), ({"split": None}, False),
    ],
)  # fmt: skip
def test_options_may_be_none_where_the_method_says_so(options, fine) -> None:
    if fine:
        assert dqlab.recipe("q-diffusion", **options)
        return
    with pytest.raises(InvalidInputError, match=r"q-diffusion: .* it takes"):
        dqlab.recipe("q-diffusion", **options)


def test_whole_numbers_are_numbers(plugins) -> None:
    plugins("halving")
    assert dqlab.recipe("halving", factor=1).methods[0].factor == 1


def test_options_stay_through_only_and_without(plugins) -> None:
    plugins("halving")
    other = dqlab.recipe("halving", factor=0.25)
    assert other.only("place").to_dict() == other.without("fit").to_dict() == other.to_dict()


def test_a_plugin_works_like_a_shipped_method(plugins) -> None:
    plugins("halving", "reversed_order")
    states = recorded()[0]
    q = dqlab.quantize(pipeline(), "halving", 8, 8, sampler=SAMPLER, calibration=states)
    assert dqlab.describe(q)["recipe"] == {
        "methods": ["halving"], "options": [{}], "moments": {"place": "halving"},
    }  # fmt: skip
    plain, found = quantizers(quantized(8, 8).unet), quantizers(q.unet)
    assert torch.equal(found["conv_in.input"].scale, plain["conv_in.input"].scale / 2)
    quarter = dqlab.recipe("halving", factor=0.25)
    q = dqlab.quantize(pipeline(), quarter, 8, 8, sampler=SAMPLER, calibration=states)
    assert torch.equal(quantizers(q.unet)["conv_in.input"].scale, plain["conv_in.input"].scale / 4)


def test_each_moment_is_asked_of_its_owner(plugins, monkeypatch) -> None:
    plugins("halving", "reversed_order")
    order = []
    run = SetRanges.run
    monkeypatch.setattr(
        SetRanges, "run", lambda self, job: (order.append(self.name), run(self, job))
    )
    both = dqlab.recipe("halving") | dqlab.recipe("reversed-order")
    q = dqlab.quantize(pipeline(), both, 4, 8, sampler=SAMPLER)
    assert order == ["activation ranges", "weight ranges"]
    assert dqlab.describe(q)["calibration"]["rows"] == 5


@pytest.mark.parametrize("name", ["reversed-order", "reversed_order", "Reversed_Order"])
def test_dashes_and_underscores_are_the_same(plugins, name) -> None:
    plugins("reversed_order")
    assert registry.find(name) is Reversed


def test_unknown_method_lists_what_there_is(plugins) -> None:
    plugins("halving")
    with pytest.raises(UnknownNameError, match=r"'q-difusion'; there are rtn, .*halving"):
        dqlab.recipe("q-difusion")


def test_a_broken_plugin_is_left_out_with_a_warning(plugins) -> None:
    plugins("missing", "halving")
    with pytest.warns(UserWarning, match="plug-in outside:missing is left out"):
        assert registry.find("halving") is Halving
    assert registry.find("rtn").slug == "rtn"


def test_a_plugin_cannot_replace_a_shipped_method(plugins) -> None:
    plugins("rtn")
    with pytest.warns(UserWarning, match=r"'rtn' is taken by dqlab\.methods\.rtn"):
        assert registry.find("rtn") is not Halving2


def test_table_of_methods(plugins) -> None:
    plugins("halving", "reversed_order")
    rows = {row["slug"]: row for row in dqlab.methods_table()}
    assert rows["halving"] == {
        "slug": "halving",
        "title": "Halving",
        "venue": "Venue 2020",
        "arxiv": "2001.00001",
        "category": "test",
        "moments": ["place"],
        "kind": "quantizer",
        "applies_to": rows["rtn"]["applies_to"],
    }
    assert "pixel U-Net" in rows["reversed-order"]["applies_to"]
    assert "pixel U-Net (ancestral)" not in rows["reversed-order"]["applies_to"]


def test_a_method_refuses_models_it_does_not_fit(plugins) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    plugins("reversed_order")
    pipe = DDPMPipeline(pipeline().unet, DDPMScheduler())
    with pytest.raises(NotApplicableError, match=r"reversed-order does not apply.*it has no U"):
        dqlab.quantize(pipe, "reversed-order", 4, 8)


@pytest.mark.parametrize(
    ("weights", "activations", "named"),
    [(8, 8, "weights=8"), (4, 4, "activations=4"), (2.5, 8, "weights=2.5"), (True, 8, "True")],
)
def test_a_method_refuses_bits_it_is_not_defined_for(plugins, weights, activations, named) -> None:
    plugins("reversed_order")
    with pytest.raises(InvalidInputError, match=f"{named}.*reversed-order is defined for"):
        dqlab.quantize(pipeline(), "reversed-order", weights, activations)


def test_a_method_may_allow_averages(plugins) -> None:
    plugins("reversed_order")
    dqlab.recipe("reversed-order").check(family_of(pipeline()), 1.99, 8)


def test_unknown_options_are_refused(plugins) -> None:
    plugins("halving")
    with pytest.raises(InvalidInputError, match=r"halving cannot take.*'fcator'.*own are factor"):
        dqlab.recipe("halving", fcator=0.3)
    with pytest.raises(InvalidInputError, match=r"rtn cannot take.*own are dynamic"):
        dqlab.recipe("rtn", factor=1)


@pytest.mark.parametrize("given", [None, 4, ["rtn"], Halving])
def test_what_is_no_recipe_is_refused(given) -> None:
    with pytest.raises(
        InvalidInputError, match=r"Expected a method name or a recipe.*recipe\('rtn"
    ):
        as_recipe(given)
    with pytest.raises(InvalidInputError, match="Expected a method name"):
        _ = dqlab.recipe("rtn") | given


def test_a_recipe_built_by_hand() -> None:
    method = Halving()
    recipe = Recipe((method,), {"place": method})
    assert recipe.ranges == method.ranges
    assert recipe.slug == "halving"
    with pytest.raises(AttributeError):
        _ = recipe.placing
