"""Words that fill the slots of the prompt templates: names, places, objects, adjectives, events and plain words.

Adjectives, objects and events begin with a consonant sound, so that "a" is right before each of them. Names were chosen
to be one token after a space in GPT-2's vocabulary and to be clearly used for one gender.
"""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The words of a text.

    Example:
        >>> listed("kind brave")
        ('kind', 'brave')
    """
    return tuple(text.split())


NAMES: dict[str, tuple[str, ...]] = {
    "he": listed(
        "James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul Steven "
        "Andrew Kevin Brian George Edward Timothy Jason Ryan Jacob Eric Frank Scott Peter Henry Jack Adam"
    ),
    "she": listed(
        "Mary Linda Elizabeth Susan Jessica Sarah Karen Lisa Nancy Sandra Emily Michelle Amanda Melissa Laura Rebecca "
        "Amy Anna Emma Nicole Helen Rachel Kate Ruth Maria Julia Alice Jane Lucy Claire Victoria Margaret"
    ),
}

PLACES: tuple[str, ...] = listed(
    "library garden station market museum harbour school bakery castle forest hospital theatre "
    "kitchen stadium cinema bridge farm hotel church factory"
)

OBJECTS: tuple[str, ...] = listed(
    "book letter ticket basket lamp hammer blanket camera ring bottle "
    "guitar map coin key sandwich ball flower box pencil watch"
)

ADJECTIVES: tuple[str, ...] = listed(
    "kind brave calm clever cheerful quiet proud patient polite gentle loyal funny "
    "famous busy lucky careful helpful strong wise tired hungry nervous happy serious"
)

EVENTS: tuple[str, ...] = listed(
    "war siege drought strike voyage festival rebellion journey project plague "
    "dynasty treaty blockade mission tour boom crisis tradition campaign partnership"
)

PLAIN_WORDS: tuple[str, ...] = listed(
    "time year people way day man thing woman life child world hand part place case week company system program "
    "question work government number night point home water room mother area money story fact month lot right study "
    "book eye job word business issue side kind head house service friend father power hour game line end member law "
    "car city community name president team minute idea kid body information back parent face level office door health "
    "person art war history party result change morning reason research girl guy moment air teacher force education "
    "foot boy age policy music market sense nation plan college interest death experience effect use class control "
    "field development role effort rate heart drug show leader light voice wife police mind price report decision son "
    "view town road arm difference value building action season society tax director position player record paper "
    "space ground form event official matter center couple site project"
)
