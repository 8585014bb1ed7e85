"""Import hook that lets a torchvision without its compiled operators be imported.

Self-contained on purpose: `rlaif.doctor.torchvision_shim` copies this file into site-packages, where a `.pth` line imports it
at the start of every Python process. So it imports next to nothing, and torch only at the moment torchvision does.
"""

import sys

#: Schemas that torchvision registers fake kernels for without asking whether its operators could be loaded.
MISSING = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_library = None  # torch drops the schemas when the Library object dies, so somebody must hold it


class SchemaFinder:
    """A meta path finder that finds nothing: being asked for `torchvision._meta_registrations` is its signal.

    That submodule is looked up only by a real import of torchvision (availability checks look for the package alone),
    just before the line that would fail, and when torch is already loaded.
    """

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            define_missing()
        return None


def define_missing():
    """Define the missing operator schemas; do nothing where torchvision's own operators load."""
    global _library
    from torchvision.extension import _has_ops

    if _has_ops():
        return
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in MISSING.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)


def install():
    """Put the finder first on the meta path, once per process."""
    if not any(type(finder).__name__ == "SchemaFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, SchemaFinder())
