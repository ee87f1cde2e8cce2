"""The schema of every YAML file and of every `key=value` override; unknown keys are errors that name the nearest key.

    config = load_run_config("experiments/ferplus8_b0.yaml", ["train.epochs=3", "seed=1"])

Order: the file, then the overrides, then one validation of the whole. pydantic lives here, at the file boundary, and
nowhere inside.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from yaml.events import AliasEvent

from fer_lab.core.errors import InputError, NotFound, nearest

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_DEPTH = 20  # the schema needs five
FIXED_IN_A_STUDY = {
    "data.dataset": "a study has one dataset, for its trials to compare; run one study each",
    "data.protocol": "a study has one protocol, for its trials to compare; run one study each",
    "seed": "a study draws its seeds itself; sweep.confirm.seeds says how many confirm a configuration",
    "name": "a name changes nothing; a study has one",
}
"""Keys that `space` cannot vary, and why."""
Fraction = float


class Section(BaseModel):
    """A part of a configuration: frozen, no unknown keys, no silent conversions of text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which faces, under which protocol, with which targets."""

    dataset: str = Field("ferplus", description="a prepared dataset; `ferplus` is whichever source is prepared (2016 first)")
    protocol: str = "ferplus8"
    targets: Literal["soft", "majority"] = Field("soft", description="vote distribution, or the majority label, as target")
    drop_twins: bool = Field(True, description="leave out training faces with an exact pixel twin in valid or test")
    subset: PositiveInt | None = Field(None, description="train on this many faces, drawn by seed (all when null)")
    balance: PositiveInt | None = Field(None, description="sample down / repeat up to this many faces per class (majority label)")


class ModelConfig(Section):
    """The backbone and where its first weights come from."""

    backbone: str = "tf_efficientnetv2_b0"
    pretrained: bool = False
    weights_file: Path | None = Field(
        None, description="a local weights file of the backbone; a classifier of as many classes stays"
    )
    drop_rate: float = Field(0.2, ge=0, lt=1)
    drop_path_rate: float = Field(0.1, ge=0, lt=1)
    mean: float | None = Field(None, description="of gray values in 0–1; timm's record of the backbone when null")
    std: PositiveFloat | None = None
    head_std: PositiveFloat | None = Field(0.01, description="of a new classifier's weights; as Keras draws them when null")


class AugmentConfig(Section):
    """Random changes of training faces, drawn per face on the device. Zero or null means off."""

    rotation_deg: float = Field(15.0, ge=0, le=180)
    shift: Fraction = Field(0.08, ge=0, le=1, description="of the face's side")
    zoom: Fraction = Field(0.08, ge=0, lt=1)
    shear: Fraction = Field(0.05, ge=0, le=1)
    flip: float = Field(0.5, ge=0, le=1, description="probability")
    fill: Literal["reflect", "border", "zeros"] = "reflect"
    brightness: Fraction = Field(0.15, ge=0, le=1)
    contrast: Fraction = Field(0.15, ge=0, lt=1)
    erasing: float = Field(0.2, ge=0, le=1, description="probability of one erased rectangle (Zhong et al., AAAI 2020)")
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta distribution (Zhang et al., ICLR 2018)")
    cutmix: float = Field(0.0, ge=0, description="alpha of the Beta distribution (Yun et al., ICCV 2019)")


class SizeStage(Section):
    """From this epoch on, faces are enlarged to `size`×`size` pixels."""

    from_epoch: int = Field(ge=0)
    size: PositiveInt


class EarlyStopping(Section):
    """Stop after `patience` epochs without an improvement of `metric`."""

    metric: str = "val/nll"
    patience: PositiveInt = 20


class TrainConfig(Section):
    """Optimisation."""

    epochs: int = Field(60, ge=0, description="0: calibrate, measure and log model.weights_file as it is")
    batch_size: int = Field(128, ge=2)
    image_size: int = Field(96, ge=32, le=512, description="side in pixels to which the graph enlarges a face")
    stages: tuple[SizeStage, ...] = Field((), description="progressive sizes before the last one, e.g. [{from_epoch: 0, size: 64}]")
    optimizer: str = Field("adamw", description="any optimiser name of timm")
    lr: PositiveFloat = 2e-3
    weight_decay: float = Field(0.05, ge=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    optimizer_options: dict[str, float | bool] = Field(default_factory=dict, description="for the optimiser, e.g. {alpha: 0.9}")
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_epochs: float = Field(2.0, ge=0)
    min_lr: float = Field(1e-5, ge=0)
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    plateau_patience: PositiveInt = 10
    ema_decay: float | None = Field(0.999, gt=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    clip_norm: PositiveFloat | None = 1.0
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it, else float32")
    channels_last: bool = True
    compile: bool = False
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: PositiveInt | None = Field(None, description="CPU threads (all cores when null)")
    early_stopping: EarlyStopping | None = None
    select: str = Field("val/accuracy", description="the metric whose best epoch is the run's checkpoint")
    calibration: Literal["temperature", "bias"] = Field(
        "temperature", description="fitted on the validation split at the end: a temperature, or with it a bias per class"
    )
    keep: tuple[str, ...] = Field((), description="further metrics whose best epochs are kept as artifacts, not calibrated")
    teachers: tuple[str, ...] = Field((), description="models whose mean probabilities are distilled, e.g. [runs:/ID]")
    teacher_weight: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _stages_ascend(self) -> TrainConfig:
        starts = [stage.from_epoch for stage in self.stages]
        if starts != sorted(set(starts)) or (starts and (starts[0] != 0 or starts[-1] >= max(self.epochs, 1))):
            raise ValueError(f"stages must start at epoch 0 and ascend below epochs={self.epochs}, got from_epoch {starts}")
        return self

    def size_at(self, epoch: int) -> int:
        """Return the side in pixels at this epoch (0-based). The last stage lasts to the end."""
        sizes = [stage.size for stage in self.stages if stage.from_epoch <= epoch]
        return sizes[-1] if sizes else self.image_size


class RunConfig(Section):
    """One training run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()


class Dimension(Section):
    """One searched key: `{low, high[, log][, step][, integer]}` or `{choices: […]}`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(None, gt=0)
    integer: bool = False
    choices: tuple[str | int | float | bool, ...] | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Dimension:
        if self.choices is not None:
            if self.low is not None or self.high is not None or not self.choices:
                raise ValueError("give either choices (at least one) or low and high")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"needs low < high, got low={self.low}, high={self.high}")
        elif self.integer and any(value is not None and value % 1 for value in (self.low, self.high, self.step)):
            raise ValueError(f"integer needs whole numbers, got low={self.low}, high={self.high}, step={self.step}")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        elif self.step is not None and abs((self.high - self.low) / self.step - round((self.high - self.low) / self.step)) > 1e-9:
            raise ValueError(f"step {self.step} does not divide high − low = {self.high - self.low}")
        return self


class ConfirmConfig(Section):
    """The best `top` configurations are run again over `seeds` fresh seeds; the mean decides."""

    top: PositiveInt = 2
    seeds: PositiveInt = 3


class PrunerConfig(Section):
    """Which trials end early."""

    name: Literal["median", "hyperband", "none"] = "median"
    startup_trials: int = Field(3, ge=0)
    warmup_epochs: int = Field(2, ge=0)
    patience: int = Field(0, ge=0, description="epochs without improvement before the median counts")


class Budget(Section):
    """Limits on the network; a trial beyond one is never the winner."""

    max_parameters_m: PositiveFloat | None = Field(None, description="millions of parameters")
    max_p50_ms: PositiveFloat | None = Field(None, description="median forward pass of the torch runtime, batch 1, 1 thread")


class SearchConfig(Section):
    """The study around the runs."""

    study: str | None = Field(None, description="the study's name; from name and a hash of config, space, dataset when null")
    trials: PositiveInt = 12
    workers: PositiveInt = 1
    objectives: tuple[Literal["accuracy", "latency"], ...] = ("accuracy",)
    metric: str = Field("val/accuracy", description="what the accuracy objective and the pruner read")
    sampler_seed: int = 0
    pruner: PrunerConfig = PrunerConfig()
    confirm: ConfirmConfig = ConfirmConfig()
    budget: Budget = Budget()
    lease_s: float = Field(60.0, ge=3.0, description="a worker silent for this long is taken for dead")
    max_hours: PositiveFloat | None = None


class SweepConfig(RunConfig):
    """A run configuration, the keys that vary, and the study around them."""

    space: dict[str, Dimension] = Field(default_factory=dict)
    sweep: SearchConfig = SearchConfig()


Schema = TypeVar("Schema", bound=Section)


def load_run_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run configuration of a YAML file (defaults when None) with `key=value` overrides."""
    return load(RunConfig, path, overrides)


def load_sweep_config(path: str | Path | None, overrides: Sequence[str] = ()) -> SweepConfig:
    """Return the sweep configuration of a YAML file with overrides; each searched key is checked to exist."""
    config = load(SweepConfig, path, overrides)
    for key, dimension in config.space.items():
        if key in FIXED_IN_A_STUDY:
            raise InputError(f"space.{key}: {FIXED_IN_A_STUDY[key]}")
        for value in _ends(dimension):
            with_values(config, {key: value}, where=f"space.{key}")
        _check_inside(config, key, dimension)
    return config


def run_config_of(config: SweepConfig, values: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the run part of a sweep configuration with dotted `values` applied (a trial's parameters)."""
    tree = config.model_dump(mode="json", exclude={"space", "sweep"})
    return _apply(RunConfig, tree, values or {}, "trial")


def with_values(config: Schema, values: Mapping[str, Any], where: str = "override") -> Schema:
    """Return a copy of `config` with dotted keys replaced, validated as a whole."""
    return _apply(type(config), config.model_dump(mode="json"), values, where)


def load(schema: type[Schema], path: str | Path | None, overrides: Sequence[str] = ()) -> Schema:
    """Read YAML, apply `key=value` overrides, validate. Raises InputError that names file, key, value and the allowed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = read_yaml(path) if path is not None else {}
    given = OmegaConf.create({})
    try:
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise InputError(f"override {text!r} is not of the form key=value, e.g. train.epochs=3")
            OmegaConf.update(given, key.strip(), _override(schema, key.strip(), value))
        merged = OmegaConf.merge(OmegaConf.create(tree), given)
        container = OmegaConf.to_container(merged, resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise InputError(f"overrides {' '.join(overrides)}: {error}") from None
    return validate(schema, container, str(path) if path is not None else "overrides")


def _override(schema: type[BaseModel], key: str, text: str) -> Any:
    """Parse a value as a file's would be (by OmegaConf's YAML 1.1 010 is 8); a list may be words with commas or spaces."""
    value = yaml.load(text, Loader=_StrictLoader)
    if value is None or isinstance(value, list | dict) or not _is_list(schema, key):
        return value
    return [yaml.load(word, Loader=_StrictLoader) for word in text.replace(",", " ").split()]


def _is_list(schema: type[BaseModel], key: str) -> bool:
    """Whether the field at a dotted key is a list; false for keys that are none."""
    kind = _fields(schema).get(key)
    return any(get_origin(option) in (tuple, list) for option in (kind, *get_args(kind)))


def validate(schema: type[Schema], tree: Any, where: str) -> Schema:
    """Validate a parsed tree against `schema`; raises InputError with every fault, the nearest key for unknown ones."""
    if not isinstance(tree, dict):
        raise InputError(f"{where}: expected a mapping of keys to values, got {type(tree).__name__}")
    try:
        return schema.model_validate_json(json.dumps(tree), strict=True)  # as JSON, for a list may be a tuple and text a path
    except ValidationError as error:
        faults = "; ".join(_fault(schema, fault) for fault in error.errors())
        raise InputError(f"{where}: {faults}") from None


def dump_yaml(config: Section) -> str:
    """Return the configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(config: Section) -> dict[str, str]:
    """Return `{"train.epochs": "60", …}` for the parameters table of a run."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = str(value)

    walk("", config.model_dump(mode="json"))
    return flat


class _StrictLoader(yaml.SafeLoader):
    """YAML without tags, aliases, duplicate keys or deep nesting, and with YAML 1.2's scalars."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML stubs
        refused = None
        if isinstance(event, AliasEvent):
            refused = "aliases are not allowed"
        elif getattr(event, "tag", None) is not None:  # also `!!int`, whose constructor fails in ways of its own
            refused = "tags are not allowed"
        elif self.depth > MAX_CONFIG_DEPTH:  # PyYAML recurses, and ends in a RecursionError
            refused = f"nested deeper than {MAX_CONFIG_DEPTH}"
        if refused:
            raise yaml.composer.ComposerError(None, None, refused, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    first_line: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        line = key_node.start_mark.line + 1
        if isinstance(key, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key in first_line:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key!r}, first on line {first_line[key]}, again on line {line}", key_node.start_mark
            )
        first_line[key] = line
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)
_SCALARS = (  # as in YAML 1.2; in PyYAML's 1.1, `no` is False, 010 is 8, 12:30:00 is 45000 and 1e-3 is text
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
_StrictLoader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping of a YAML file (UTF-8, at most 1 MB). Raises NotFound or InputError with line and column."""
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"no such file: {path}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, a configuration has at most {MAX_CONFIG_BYTES}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(f"{where}: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:  # a whole number of more digits than Python takes
        raise InputError(f"{path}: {error}") from None
    if tree is None:
        raise InputError(f"{path}: empty, expected a mapping of keys to values")
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    return tree


def _ends(dimension: Dimension) -> list[Any]:
    if dimension.choices is not None:
        return list(dimension.choices)
    assert dimension.low is not None
    assert dimension.high is not None
    return [dimension.low, dimension.high]


def _check_inside(config: SweepConfig, key: str, dimension: Dimension) -> None:
    """Refuse a range of fractions for a key of whole numbers: its two ends may be whole, what is drawn between them is not."""
    if dimension.low is None or dimension.high is None or dimension.integer:
        return
    inside = dimension.low + dimension.step if dimension.step else math.nextafter(dimension.high, dimension.low)
    try:
        with_values(config, {key: inside})
    except InputError:
        raise InputError(f"space.{key}: takes whole numbers, not fractions such as {inside}; add integer: true") from None


def _apply(schema: type[Schema], tree: dict[str, Any], values: Mapping[str, Any], where: str) -> Schema:
    for dotted, value in values.items():
        node = tree
        *parents, leaf = dotted.split(".")
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                raise InputError(f"{where}: unknown key {dotted!r}{nearest(dotted, _fields(schema))}")
            node = child
        whole = isinstance(value, float) and value.is_integer()  # a range's ends and steps are floats, also of whole numbers
        node[leaf] = int(value) if whole else value
    return validate(schema, tree, where)


def _fields(schema: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return the annotation of every field by its dotted key, sections included."""
    fields: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        fields[prefix + name] = field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= _fields(field.annotation, f"{prefix}{name}.")
    return fields


def _fault(schema: type[BaseModel], fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {path!r}{nearest(path, _fields(schema))}"
    return f"{path or 'the file'}: {fault['msg']}, got {fault['input']!r}" if path else str(fault["msg"])
