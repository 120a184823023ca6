"""When a study was made and of whom: as keyed names and shifted days, which tell nothing by themselves.

Owns `visit_of` and what counts as nobody's id. Days of one patient keep their distances; those of two patients have
nothing to do with each other.
"""

import re
from contextlib import suppress
from datetime import date

from pydicom.dataset import Dataset

from medrec.dicom import header
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.series import Visit

# Ids that are typed, or written by programs, when nobody's is meant; a number after them counts patients, and is one's.
NOBODY = re.compile(
    r"phantom|fantom|(not|no|test|patient|id|number)*"
    r"(|anon|anonym|anonymous|anonymi[sz]ed|test|testing|tester|testpatient|patienttest|unknown|unk|unnamed|none|null|nil"
    r"|na|nan|noid|nopatientid|noname|no|id|patient|patientid|dummy|default|demo|example|sample|temp|tmp|removed|deleted"
    r"|qa|qc|xx|asdf|abc|abcd|johndoe|janedoe|doe|available|given|redacted|withheld|unbekannt|inconnu|desconocido)"
    r"(test|patient|id|number)*0*[01]?"
)
COUNTING = "01234567890"


def visit_of(ds: Dataset, pseudonyms: Pseudonyms) -> Visit:
    """The visit that a header tells of."""
    who = header.text(ds, "IssuerOfPatientID"), header.text(ds, "PatientID")
    day, minute = _day(header.text(ds, "StudyDate")), _minute(header.text(ds, "StudyTime"))
    sex = header.text(ds, "PatientSex").strip().upper()
    born = _day(header.text(ds, "PatientBirthDate"))
    return Visit(
        day=None if day is None else day + pseudonyms.shift_days(*who),
        minute=minute,
        sex=pseudonyms.of("sex", *who, sex) if sex else "",
        born=pseudonyms.of("born", *who, str(born)) if born is not None else "",
        nobody=is_nobody(who[1]),
    )


def is_nobody(patient_id: str) -> bool:
    """Whether an id is a placeholder that different people share."""
    plain = re.sub(r"[^a-z0-9]", "", patient_id.casefold())
    return (
        len(set(plain)) <= 1
        or any(n.startswith(patient_id.strip()) for n in (COUNTING, COUNTING[1:]))
        or NOBODY.fullmatch(plain) is not None
    )


def _day(text: str) -> int | None:
    """Days since year 1 of a DA value (PS3.5 6.2; with dots before DICOM 3.0); None for what is no day."""
    with suppress(ValueError):
        digits = text.replace(".", "").strip()
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).toordinal() if len(digits) == 8 else None
    return None


def _minute(text: str) -> int | None:
    """Minutes since midnight of a TM value (PS3.5 6.2); None for what is no time."""
    digits = text.replace(":", "").strip()[:4]
    if len(digits) < 4 or not digits.isascii() or not digits.isdigit():
        return None
    hours, minutes = int(digits[:2]), int(digits[2:])
    return 60 * hours + minutes if hours < 24 and minutes < 60 else None
