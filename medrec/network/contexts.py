"""What is negotiated: SOP classes and transfer syntaxes, for sending, receiving and asking.

The one list: the code negotiates it, the conformance statement prints it, and a test compares the two on the wire.
"""

from pydicom import uid
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from medrec.dicom.decoders import STRICT

NATIVE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
# What is accepted: everything that has a strict decoder, so that nothing is received that cannot be read.
READABLE = tuple(UID(syntax) for syntax in STRICT)
LOSSY = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
)
LOSSLESS = tuple(s for s in READABLE if s.is_compressed and s not in LOSSY)
SENT = (
    uid.SegmentationStorage,
    uid.Comprehensive3DSRStorage,
    uid.EncapsulatedPDFStorage,
    uid.KeyObjectSelectionDocumentStorage,
)
IMAGES = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.BreastTomosynthesisImageStorage,
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.UltrasoundImageStorage,
    uid.UltrasoundMultiFrameImageStorage,
    uid.NuclearMedicineImageStorage,
    uid.PositronEmissionTomographyImageStorage,
    uid.EnhancedPETImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
RECEIVED = (*IMAGES, *SENT)
ASKED = (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
MAX_PDU_BYTES = 131_072  # the largest that dcmtk sends; larger ones were no faster
__all__ = ["ASKED", "RECEIVED", "SENT", "StorageCommitmentPushModel", "Verification"]


def sending() -> list[PresentationContext]:
    """Each class in explicit and in implicit little endian, contexts of their own: explicit is taken if it can be."""
    return [build_context(sop_class, syntax) for sop_class in SENT for syntax in NATIVE]


def finding() -> list[PresentationContext]:
    """For C-FIND."""
    return [build_context(StudyRootQueryRetrieveInformationModelFind, list(NATIVE))]


def getting() -> list[PresentationContext]:
    """For C-GET, whose images come over the same association."""
    model = build_context(StudyRootQueryRetrieveInformationModelGet, list(NATIVE))
    kinds = (NATIVE, LOSSLESS, LOSSY)  # contexts of their own, so that a PACS sends what it holds, as it holds it
    return [model, *(build_context(sop_class, list(kind)) for sop_class in IMAGES for kind in kinds)]


def moving() -> list[PresentationContext]:
    """For C-MOVE."""
    return [build_context(StudyRootQueryRetrieveInformationModelMove, list(NATIVE))]


def committing() -> list[PresentationContext]:
    """For storage commitment, both ways."""
    return [build_context(StorageCommitmentPushModel, list(NATIVE))]


def accepting() -> list[PresentationContext]:
    """What our listener accepts."""
    echo = build_context(Verification, list(NATIVE))
    return [echo, *(build_context(sop_class, list(READABLE)) for sop_class in RECEIVED)]
