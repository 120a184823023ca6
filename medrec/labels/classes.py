"""The classes that a table gives to images and studies: by the column that a card names, in the words that it knows.

A word that nobody declared is a mistake until somebody says otherwise: read as "not the positive class" it would teach
the opposite. Where a card lists no `classes`, two words are all that there may be, one of them its positive class.
"""

from collections.abc import Iterator, Mapping, Sequence

from medrec.errors import DataError
from medrec.labels.matching import Images, Row
from medrec.pictures import Card, PictureCard
from medrec.store import Known, Store

Found = tuple[Card, dict[str, str]] | str


def classes_of(
    rows: Sequence[Row], images: Images, cards: Mapping[str, Card], store: Store
) -> Iterator[tuple[int, list[Known], Found]]:
    """Each row's line in the file, its images, and the card with its class and grade, or why it is not taken.

    Rows without a class say nothing and are left out. Raises DataError where the table is for no card.
    """
    card = _card_of(rows, cards)
    column = str(card.class_column)
    given = [(line, row, row[column].strip()) for line, row in enumerate(rows, 2) if (row[column] or "").strip()]
    if not given:
        raise DataError(f"its column {column} is empty")
    allowed = _allowed(card, {value for _, _, value in given}, store)
    said: dict[str, set[str]] = {}
    read: list[tuple[int, list[Known], dict[str, str], str]] = []
    for line, row, value in given:
        own: list[Known] = []
        try:
            if value not in allowed:
                raise DataError(f"{value!r} is no class of {card.name}: its {column} is {' or '.join(sorted(allowed))}")
            own = [k for k in images.of_row(row) if card.name in k.cards]
            why = "" if own else f"it fits no image that is known to {card.name}: ingest its study first"
        except DataError as error:
            why = str(error)
        for known in own:
            said.setdefault(known.image, set()).add(value)
        read.append((line, own, _told(card, row, value), why))
    for line, own, told, why in read:
        if any(len(said[k.image]) > 1 for k in own):
            why = "another row gives the same image another class"
        yield line, own, why or (card, told)


def _told(card: Card, row: Row, value: str) -> dict[str, str]:
    """By column: the class, and the grade by which the card softens it, where the row has one."""
    softened = card.softened if isinstance(card, PictureCard) else None
    grade = "" if softened is None else (row.get(softened.column) or "").strip()
    return {str(card.class_column): value} | ({softened.column: grade} if softened and grade else {})


def _card_of(rows: Sequence[Row], cards: Mapping[str, Card]) -> Card:
    """The one card whose column of classes the table has."""
    able = [c for c in cards.values() if c.class_column is not None]
    fitting = [c for c in able if rows and c.class_column in rows[0]]
    if not fitting:
        wanted = ", ".join(f"{c.class_column} ({c.name})" for c in able) or "none of the cards takes classes"
        raise DataError(f"it has no column of classes that a card names: {wanted}")
    if len(fitting) > 1:
        raise DataError(f"the cards {', '.join(c.name for c in fitting)} name its column: say with --card which")
    return fitting[0]


def _allowed(card: Card, values: set[str], store: Store) -> set[str]:
    if card.classes:
        return set(card.classes)
    known = {x.classes.get(str(card.class_column), "") for x in store.labels(card.name) if x.what == "class"}
    every = values | known - {""}
    if card.positive not in every or len(every) > 2:
        raise DataError(
            f"its {card.class_column} is {', '.join(sorted(every)[:10])}, and the card {card.name} says only that "
            f"{card.positive} is one of them: write classes: [...] into the card, all that there are"
        )
    return every
