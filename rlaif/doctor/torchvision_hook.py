"""Import hook with which a torchvision without its compiled operators can be imported.

It is self-contained on purpose: `rlaif.doctor.torchvision_shim` copies this file into site-packages, and a `.pth` line there
imports it at the start of every Python process. So it imports almost nothing, and torch only when torchvision does.
"""

import sys

MISSING = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""Schemas for which torchvision registers fake kernels without a check that its operators could be loaded."""

# torch drops the schemas when the Library object is collected, so a reference to it must stay.
_library = None


class SchemaFinder:
    """A meta path finder that finds nothing; a search for `torchvision._meta_registrations` is its signal.

    Only a real import of torchvision searches for that submodule (availability checks search for the package alone), just
    before the line that would fail, and after torch has been loaded.
    """

    def find_spec(self, name, path=None, target=None):
        """Define the missing schemas at the signal, and let other finders find the module."""
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            define_missing()
        return None


def define_missing():
    """Define the missing operator schemas; do nothing if torchvision's own operators load."""
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
    # By name, because this file is loaded as a module of two names: ours, and the copy in site-packages.
    if not any(type(finder).__name__ == "SchemaFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, SchemaFinder())
