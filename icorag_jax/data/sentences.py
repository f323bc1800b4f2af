"""Made-up English questions and passages, for use where no real text is at hand.

A text is about one topic. Its names are put together from parts, so almost no two texts share all
of them, while topics, relations and dates repeat: the embeddings have clusters and a rich spread.
"""

import random

_VOCABULARY = {
    slot: words.split(", ")
    for slot, words in {
        "first_name": "Adela, Amos, Beatrix, Bruno, Cecily, Conrad, Dagny, Darius, Edith, Emeka, "
        "Farah, Felix, Greta, Hamza, Ilse, Ivo, Jun, Karin, Kofi, Lena, Luca, Mabel, Mei, Nadia, "
        "Nils, Odette, Omar, Petra, Quentin, Rafael, Rosa, Saskia, Stefan, Tamar, Tomas, Ulla, "
        "Viktor, Wanda, Yusuf, Zora",
        "last_name": "Abbott, Achterberg, Balogun, Brandt, Castellan, Corwin, Dvorak, Eastman, "
        "Falk, Ferreira, Gallagher, Grover, Halloran, Ibsen, Jansen, Kaplan, Kimura, Lindqvist, "
        "Marchetti, Mbeki, Novak, Okafor, Osterman, Pereira, Quill, Rahman, Rossi, Sandoval, "
        "Sorensen, Tanaka, Thornbury, Ueda, Varga, Whitlock, Yilmaz, Zielinski",
        "place_start": "Alder, Ash, Bel, Black, Bram, Carn, Dun, East, Elm, Fair, Glen, Green, "
        "Hart, Kings, Lang, Mar, Mill, Nor, Oak, Raven, Red, San, Stone, Thorn, Val, West, Whit, "
        "Wind, Wolf",
        "place_end": "borough, bridge, burn, by, dale, den, fell, field, ford, gate, grad, ham, "
        "haven, holm, hurst, ington, ley, mere, mont, mouth, port, stad, ton, vale, vik, wick, "
        "worth",
        "team_name": "Bears, Comets, Falcons, Giants, Hornets, Mariners, Pilots, Rangers, Rovers, "
        "Wolves",
        "adjective": "Broken, Crimson, Distant, Electric, Empty, Forgotten, Frozen, Gentle, "
        "Golden, Hidden, Hollow, Last, Lonely, Midnight, Paper, Patient, Restless, Secret, "
        "Seventh, Silent, Silver, Slow, Unfinished, Wandering",
        "noun": "Anchor, Archive, Bridge, Carnival, Clock, Compass, Daughter, Empire, Garden, "
        "Harbour, Horizon, Island, Lantern, Letter, Machine, Mirror, Mountain, Orchard, "
        "Passenger, River, Season, Shadow, Train, Winter",
        "month": "January, February, March, April, May, June, July, August, September, October, "
        "November, December",
        "ordinal": "first, second, third, fourth, fifth",
        "field": "agriculture, algebra, anthropology, astronomy, botany, civil engineering, "
        "economics, geology, immunology, journalism, law, linguistics, marine biology, medicine, "
        "music theory, optics, philosophy, public health, robotics, theology",
        "animal": "albatross, antelope, badger, beetle, crane, falcon, frog, gecko, heron, lemur, "
        "lynx, moth, newt, otter, owl, salamander, seal, sparrow, tortoise, trout, vole, wolverine",
        "sport": "basketball, cricket, field hockey, football, handball, ice hockey, rugby, "
        "volleyball",
        "genre": "comedy, crime, documentary, fantasy, horror, musical, mystery, satire, western",
        "goods": "bicycles, cotton, glass, machine tools, paper, pianos, radios, ships, steel, "
        "tea, textiles",
        "land": "coast, delta, desert, forest, highlands, islands, marshes, plateau, steppe, "
        "valley",
        "disease": "cholera, diabetes, gout, malaria, measles, scurvy, smallpox, tuberculosis",
    }.items()
}

# A topic: questions, each a text of its own, and facts, of which a passage takes a few.
_TOPICS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "Who directed the {genre} film {work}?",
            "In what year was {work}, starring {person}, released?",
            "which studio in {place} made the film {work}",
            "Did {person} and {other} both appear in {work}?",
            "How much did the {genre} film {work} earn in its first week?",
        ),
        (
            "{work} is a {genre} film of {year} directed by {person}.",
            "It stars {other} as a retired judge who returns to {place}.",
            "It earned {number} million dollars and won {few} awards at the {place} festival.",
            "Critics praised its photography but found the last act too long.",
            "A sequel, written by {person}, was released on {date}.",
        ),
    ),
    (
        (
            "who wrote the novel {work}",
            "What is the name of the village in which {work} by {person} is set?",
            "Which prize did {person} win for {work} in {year}?",
            "How many languages has {work} been translated into?",
        ),
        (
            "{work} is the {ordinal} novel by {person}, first published in {year}.",
            "The story follows {other}, a {field} student who inherits a house near {place}.",
            "It was translated into {count} languages and sold {number},000 copies.",
            "The author said that the plot came from a letter found in an attic.",
        ),
    ),
    (
        (
            "Where was the {field} scholar {person} born?",
            "What did {person} of the University of {place} discover in {year}?",
            "when did {person} become professor of {field}",
            "Which student of {person} later led the {place} Institute?",
        ),
        (
            "{person} (born {date}) is a scholar of {field} at the University of {place}.",
            "Together with {other}, {person} founded the {place} Institute of {field}.",
            "The work for which the group is best known appeared in {year}.",
            "In later life the professor wrote {count} books for the general reader.",
        ),
    ),
    (
        (
            "What is the population of {place}?",
            "in which county is the town of {place} located",
            "Which river flows through {place} and {elsewhere}?",
            "How far is {place} from the {land} of {elsewhere}?",
        ),
        (
            "{place} is a market town on the edge of the {elsewhere} {land}.",
            "At the census of {year} it had a population of {number},{hundreds}.",
            "The railway from {elsewhere} reached it in {year} and closed {count} years later.",
            "The old bridge, built by {person}, is a protected monument.",
            "Most of its people work in farming and in the making of {goods}.",
        ),
    ),
    (
        (
            "who won the {year} {sport} final between {team} and {rival}",
            "How many points did {person} score for the {team}?",
            "Which coach led the {team} to the {sport} title in {year}?",
            "Where do the {team} play their home games?",
        ),
        (
            "The {team} are a {sport} club based in {place}, founded in {year}.",
            "They beat the {rival} {count} to {few} in the final, with {person} scoring twice.",
            "{other} has coached the side since {date}.",
            "Home games draw about {number},000 spectators to the river stadium.",
        ),
    ),
    (
        (
            "When did the Battle of {place} take place?",
            "Which general commanded the {elsewhere} army at the Battle of {place}?",
            "what treaty ended the war between {place} and {elsewhere}",
            "Why did {person} lay siege to {place}?",
        ),
        (
            "The Battle of {place} was fought on {date} by the armies of {person} and {other}.",
            "About {number},000 soldiers took part, and losses on both sides were heavy.",
            "The treaty signed at {elsewhere} gave the {land} to the victors.",
            "A small chapel marks the spot where the general fell.",
        ),
    ),
    (
        (
            "What does the {place} {animal} eat?",
            "Is the {place} {animal} an endangered species?",
            "who first described the {place} {animal}",
            "In which kind of habitat does the {place} {animal} breed?",
        ),
        (
            "The {place} {animal} is found only in the {land} north of {elsewhere}.",
            "It was first described by {person} in {year}.",
            "Adults weigh about {count} kilograms and live for up to {few} years.",
            "Fewer than {number} pairs remain, chiefly because wetlands were drained.",
            "It feeds at dusk on insects, seeds and small fish.",
        ),
    ),
    (
        (
            "Which company took over {company} in {year}?",
            "Who founded {company}?",
            "where is the head office of {company}",
            "How many people does {company}, the maker of {goods}, employ?",
        ),
        (
            "{company} is a maker of {goods} with its head office in {place}.",
            "It was founded in {year} by {person} and the engineer {other}.",
            "The firm employed {number} people before its merger with a rival from {elsewhere}.",
            "Its shares fell by {count} percent after a strike at the main works.",
        ),
    ),
    (
        (
            "Who sings the song {work}?",
            "On which album by {person} does {work} appear?",
            "what is the song {work} by {person} about",
            "Which orchestra first performed the {ordinal} symphony of {person}?",
        ),
        (
            "{work} is a song by {person}, recorded in {place} in {year}.",
            "It spent {count} weeks on the charts and sold {number},000 copies.",
            "{other} plays the cello in the slow middle section.",
            "The words tell of a sailor who waits for news from {elsewhere}.",
        ),
    ),
    (
        (
            "Who was elected mayor of {place} in {year}?",
            "What law on {goods} did {person} propose?",
            "when did {person} leave the parliament of {elsewhere}",
            "By how many votes did {person} lose to {other}?",
        ),
        (
            "{person} served as mayor of {place} from {year} until the general strike.",
            "On {date} the council voted by {count} to {few} to raise the tax on {goods}.",
            "The opposition, led by {other}, called for new elections.",
            "Turnout was the lowest in {number} districts of the province.",
        ),
    ),
    (
        (
            "What treatment for {disease} did {person} introduce?",
            "Which hospital in {place} treated {disease} in {year}?",
            "how is {disease} spread",
            "How many patients took part in the {place} trial on {disease}?",
        ),
        (
            "An outbreak of {disease} struck {place} in the spring of {year}.",
            "The physician {person} traced it to a single well near the harbour.",
            "Of {number} patients in the trial, {count} recovered within a week.",
            "The method was later adopted by {other} at the hospital of {elsewhere}.",
        ),
    ),
    (
        (
            "Who designed the {adjective} Tower in {place}?",
            "How tall is the {adjective} Tower of {place}?",
            "in what style was the cathedral of {place} built",
            "Which architect, {person} or {other}, restored {place} Castle?",
        ),
        (
            "The {adjective} Tower in {place} was designed by {person} and opened on {date}.",
            "It is {number} metres tall and has {count} floors.",
            "The stone came by barge from the quarries of {elsewhere}.",
            "A fire in {year} destroyed the roof, which {other} rebuilt in copper.",
        ),
    ),
)


def generate_sentences(count: int, seed: int) -> list[str]:
    """Questions and passages in turn, the first a question; no text occurs twice.

    Args:
        count: how many texts.
        seed: the same seed gives the same texts on every machine, and a smaller count their start.
    """
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        questions, facts = rng.choice(_TOPICS)
        names = _draw_names(rng)
        if len(texts) % 2 == 0:
            text = rng.choice(questions).format_map(names)
        else:
            # The first fact says what the passage is about; the others keep their order.
            kept = sorted(rng.sample(range(1, len(facts)), rng.randint(1, len(facts) - 1)))
            text = " ".join(facts[fact] for fact in (0, *kept)).format_map(names)
        texts[text] = None
    return list(texts)


def _draw_names(rng: random.Random) -> dict[str, str]:
    """A value for each slot of a template; the two people, places and teams are different ones."""
    draws = {slot: rng.sample(words, 4) for slot, words in _VOCABULARY.items()}
    sets = [{slot: draw[i] for slot, draw in draws.items()} for i in range(4)]
    names = dict(sets[0])
    people = [f"{s['first_name']} {s['last_name']}" for s in sets]
    places = [s["place_start"] + s["place_end"] for s in sets]
    names["person"], names["other"] = people[:2]
    names["place"], names["elsewhere"] = places[:2]
    names["team"], names["rival"] = (f"{places[i]} {sets[i]['team_name']}" for i in (2, 3))
    names["work"] = f"The {names['adjective']} {names['noun']}"
    names["company"] = f"{sets[2]['last_name']} & {sets[3]['last_name']} of {names['place']}"
    names["year"] = str(rng.randint(1850, 2023))
    names["date"] = f"{rng.randint(1, 28)} {names['month']} {rng.randint(1850, 2023)}"
    names["number"] = str(rng.randint(100, 999))
    names["hundreds"] = f"{rng.randint(0, 999):03}"
    names["count"] = str(rng.randint(21, 99))
    names["few"] = str(rng.randint(2, 20))
    return names
