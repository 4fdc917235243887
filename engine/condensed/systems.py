"""Registry of the sixteen systems of the study's Table 1, and of how each of them exists here.

Facts of the papers, of the released codes and of their issues; what none of them says is unknown.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

UNKNOWN = "unknown"
_DIT = "training of DiT-XL/2 and of its VAE"
_TABLE_5 = "the study's Table 5"
_REAL = "no: 300 images of each class"
_NO_DIFFUSION = "it needs a diffusion model: not yet"
_CORESET_TESTS = ("tests/kernels/test_samplers.py", "tests/engine/test_ingest.py")
_IMPORTS = ("tests/engine/test_ingest_images.py",)
SLICEABLE = ("DiT", "MGD3", "ManifoldGD", "D3HR")
"""Systems that build each class by itself, so that part of a set is a set."""
_TEACHERS = ("--teachers NAME=FILE", "--teachers NAME=FILE NAME=FILE")


class Released(NamedTuple):
    """Sets that the authors, or others, let everybody download."""

    where: str
    data: str
    ipcs: str
    layout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Record of a system."""

    family: str
    needs_full_data: str
    generative_model: str = "none"
    """none, finetuned, sampled (unchanged), guided, or unknown."""
    generative_use: str = "none"
    classifier: str = "none"
    """Classifier that it needs: none, small, or one of the full data."""
    grows_with_ipc: Literal["yes", "no", "unknown"]
    new_data_needs: str
    code: str = UNKNOWN
    licence: str = UNKNOWN
    """``none`` where the code has no licence file."""
    released: tuple[Released, ...] = ()
    layout: str = ""
    """Layout in which its code writes sets; empty if none can be imported."""
    methods: tuple[str, ...] = ()
    """Names in `METHODS` or `SAMPLERS`; empty if it is not built."""
    missing: str = ""
    """Why it is not built, or not imported either."""
    commands: tuple[str, ...] = ()
    proof: tuple[str, ...] = _IMPORTS
    published: str = UNKNOWN
    """Cost that was published, and its source."""
    published_seconds: float | None = None
    """Seconds per image on one RTX 4090, by the figure of FADRM's repository."""
    published_hours: tuple[float, float] | None = None
    """Hours for ImageNet-1K at IPC 10 and 50, by the study's Table 5."""
    left_out: str = UNKNOWN
    """Costs that these hours leave out, as a total with ready-made models does."""

    @property
    def imported(self) -> str:
        """Say by which layout it is imported, or why not."""
        return f"layout {self.layout}" if self.layout else f"no, because {self.missing}"

    @property
    def built(self) -> str:
        """Name the methods that build it, or say why there is none."""
        return ", ".join(self.methods) or f"no, because {self.missing}"


def system_of(method: str) -> str:
    """Name the system that the method of a set belongs to; empty if it is none of them."""
    own = method.partition(" (")[0].lower()  # the report says in brackets what differs
    for name, system in SYSTEMS.items():
        if own == name.lower() or own in system.methods:
            return name
    # The study's coresets differ in the score alone that CCS draws by.
    return {"ccs-aum": "AUM"}.get(own, "Concepts" if own.startswith("ccs-concept") else "")


def property_of(method: str, field: str) -> str | None:
    """Return a field of the system that a method belongs to, by the study's names, or None."""
    system = SYSTEMS.get({"MGD": "MGD3"}.get(method, method))
    value = getattr(system, field, None)
    return value if isinstance(value, str) else None


def _mirror(name: str) -> Released:
    """Describe the parquet copies of one owner."""
    where = f"Hugging Face he-yang/2025-rethinkdc-imagenet-{name}-ipc-10 (-50, -100)"
    return Released(where, "ImageNet-1K", "10, 50, 100", "parquet")


_trained = partial(
    System, family="generative, training-based", grows_with_ipc="yes",
    new_data_needs="generative model", missing=_NO_DIFFUSION, left_out=_DIT,
)  # fmt: skip
_free = partial(_trained, family="generative, training-free", layout="wnid", published=_TABLE_5)
_decoupled = partial(
    System, family="decoupled", classifier="full data", grows_with_ipc="yes",
    new_data_needs="classifier", layout="sre2l", left_out="training of the teachers",
)  # fmt: skip
_coreset = partial(System, family="coreset", grows_with_ipc="no", layout="list", published=_TABLE_5)

SYSTEMS: dict[str, System] = {
    "Minimax": _trained(
        needs_full_data="yes", generative_model="finetuned",
        generative_use="DiT-XL/2: fine-tuned in groups of 20 classes, then sampled",
        code="github.com/vimar-gu/MinimaxDiffusion", licence="none", layout="wnid",
        released=(
            Released("Google Drive 1HYZOiSEzJed67D_UTZEI2JElrsA6AM9n", "ImageNet-1K", "50", "wnid"),
            Released("Google Drive, see the code", "ImageWoof", UNKNOWN, "wnid"),
        ),
        published="its README: under an hour on an RTX 4090 for a fine-tuning of 10 classes",
    ),
    "VLCP": _trained(
        needs_full_data="yes", generative_model="finetuned",
        generative_use="Stable Diffusion 1.5: fine-tuned on captions of LLaVA-1.5, changes images",
        code="github.com/zou-yawen/Dataset-Distillation-via-Vision-Language-Category-Prototype",
        licence="none", layout="vlcp",
        released=(
            Released("gofile.me/6UrIQ/zaQO2ICY5, Google Drive: see the code",
                     "ImageNet-1K and subsets, three seeds", UNKNOWN, "vlcp"),
        ),
        left_out="training of Stable Diffusion 1.5 and of LLaVA-1.5",
    ),
    "D3HR": _trained(
        needs_full_data="yes", generative_model="sampled",
        generative_use="DiT-XL/2, unchanged for ImageNet-1K: inverts every image, then sampled",
        code="github.com/lin-zhao-resoLve/D3HR", licence="none", layout="wnid",
        released=(
            Released("Hugging Face lin-zhao-resoLve/D3HR", "ImageNet-1K", "10, 50", "wnid"),
            Released("same place", "Tiny-ImageNet, CIFAR-10, CIFAR-100", UNKNOWN, "wnid"),
        ),
    ),
    "D4M": _trained(
        needs_full_data="yes", generative_model="sampled",
        generative_use="Stable Diffusion 1.5, unchanged: makes images of latent prototypes",
        code="github.com/suduo94/D4M", licence="BSD-2", layout="d4m",
        left_out="training of Stable Diffusion 1.5",
    ),
    "Li et al.": _trained(
        needs_full_data=UNKNOWN, generative_model=UNKNOWN,
        generative_use=UNKNOWN, classifier=UNKNOWN, grows_with_ipc="unknown",
        left_out=UNKNOWN, missing="neither code nor a set was found (ICCV 2025 workshop)",
        proof=("no, because there is nothing to prove",),
    ),
    "DiT": _free(
        needs_full_data="no", generative_model="sampled",
        generative_use="DiT-XL/2, unchanged: sampled",
        code="github.com/facebookresearch/DiT", licence="CC-BY-NC-4.0, its weights too",
        left_out=f"{_DIT}, and loading them", published_hours=(1.4, 7.0),
    ),
    "MGD3": _free(
        needs_full_data="yes", generative_model="guided",
        generative_use="DiT-XL/2, unchanged: sampled with guidance to k-means centroids",
        code="github.com/jachansantiago/mode_guidance",
        published="the study's Table 5, whose seconds per image are ManifoldGD's, although MGD3 "
        "adds one subtraction to DiT's step: the released call leaves the manifold term on",
        published_hours=(11.8, 50.7),
    ),
    "ManifoldGD": _free(
        needs_full_data="yes", generative_model="guided",
        generative_use="DiT-XL/2, unchanged: as MGD3, and with guidance along a manifold",
        code="github.com/AyushRoy2001/ManifoldGD", licence="none",
        published_hours=(12.8, 51.7),
    ),
    "FADRM+": _decoupled(
        needs_full_data=_REAL, code="github.com/Jiacheng8/FADRM", licence="MIT",
        released=(
            Released("Google Drive folder 1f2liYdUyxswBEFCrrDezDEvX1-5i7vqe",
                     "ImageNet-1K, ImageNette, ImageWoof, Tiny-ImageNet, CIFAR-100", UNKNOWN,
                     "sre2l"),
        ),
        methods=("fadrm+", "fadrm"),
        commands=(
            f"coreset distill DATA PATCHES --method rded --ipc 10 {_TEACHERS[0]}",
            f"coreset distill DATA SET --method fadrm+ --ipc 10 --patches PATCHES {_TEACHERS[1]}",
        ),
        proof=("tests/engine/test_recover.py", *_IMPORTS),
        published="figure of its repository (FADRM, of one teacher: 0.47); the study's Table 5",
        published_seconds=1.09, published_hours=(2.5, 12.5),
        left_out="training of the teachers, and making the patches",
    ),
    "EDC": _decoupled(
        needs_full_data="yes", code="github.com/shaoshitong/EDC", licence="none",
        missing="it needs statistics of every layer and class of the full data for each teacher",
        published="figure of FADRM's repository", published_seconds=4.99,
    ),
    "RDED": _decoupled(
        needs_full_data=_REAL, grows_with_ipc="no", code="github.com/LINs-lab/RDED",
        licence="Apache-2.0", layout="rded", released=(_mirror("rded"),), methods=("rded",),
        commands=(f"coreset distill DATA SET --method rded --ipc 10 {_TEACHERS[0]}",),
        proof=("tests/engine/test_rded.py", *_IMPORTS),
        published="its README: 7 minutes on an RTX 4090 for ImageNet-1K at IPC 10",
        left_out="training of the teacher",
    ),
    "G-VBSM": _decoupled(
        needs_full_data="yes",
        code="github.com/shaoshitong/G_VBSM_Dataset_Condensation", licence="none",
        released=(
            Released("Baidu (password 2023): see the code", UNKNOWN, "10, 50, 100", "sre2l"),
            _mirror("gvbsm"),
        ),
        missing="it needs statistics of every layer of the full data for each teacher",
        published="figure of FADRM's repository", published_seconds=17.28,
    ),
    "SRe2L": _decoupled(
        needs_full_data="no", code="github.com/VILA-Lab/SRe2L", licence="none",
        released=(
            Released("Hugging Face zeyuanyin/SRe2L", "ImageNet-1K", "50, 200", "sre2l"),
            _mirror("sre2l"),
        ),
        methods=("sre2l", "cda"),
        commands=(f"coreset distill DATA SET --method sre2l --ipc 10 {_TEACHERS[0]}",),
        proof=("tests/engine/test_recover.py", *_IMPORTS),
        published="none; SRe2L++ has 2.52 seconds per image in the figure of FADRM's repository",
        left_out="training of the teacher",
    ),
    "AUM": _coreset(
        needs_full_data="yes", classifier="full data", new_data_needs="classifier",
        code="github.com/asappresearch/aum; drawn as "
        "github.com/haizhongzheng/Coverage-centric-coreset-selection",
        licence="MIT; of the draw: none", methods=("ccs",),
        commands=("coreset score DATA SCORES", "coreset select SCORES SET --ipc 10"),
        proof=("tests/kernels/test_dynamics.py", *_CORESET_TESTS),
        published_hours=(6.0, 6.0), left_out="nothing: they must hold the training of the proxy",
    ),
    "Concepts": _coreset(
        needs_full_data="yes", classifier="small",
        generative_use="none; the study takes its concepts from LLaVA, its features from CLIP",
        new_data_needs="small classifier", methods=("ccs",),
        commands=(
            "coreset concepts visual DATA BANK",
            "coreset score DATA SCORES --proxy concept --concepts BANK",
            "coreset select SCORES SET --ipc 10",
        ),
        proof=("tests/engine/test_concept_proxy.py", *_CORESET_TESTS),
        published_hours=(3.0, 3.0),
        left_out="training of CLIP and LLaVA; whether asking LLaVA is in them is not said",
    ),
    "Random": _coreset(
        needs_full_data="no", new_data_needs="nothing", published=UNKNOWN,
        code="none needed", licence="none needed", methods=("random",),
        commands=("coreset select DATA SET --method random --ipc 10",),
        proof=_CORESET_TESTS, left_out="nothing",
    ),
}  # fmt: skip
