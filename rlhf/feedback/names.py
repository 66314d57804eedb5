"""A name that can be read for each person, made from the mark by which the store knows that person."""

import hashlib


ADJECTIVES = (
    "Amber Ancient Bold Brave Bright Calm Careful Cheerful Clever Cosy Curious Daring Eager Early Fair Fearless "
    "Fluffy Friendly Gentle Glad Golden Graceful Grand Happy Honest Humble Jolly Keen Kind Lively Lucky Mellow Merry "
    "Mighty Misty Modest Neat Nimble Noble Patient Playful Polite Proud Quick Quiet Rapid Ready Rosy Sandy Shy Silent "
    "Silver Smart Snowy Steady Stormy Sunny Swift Tall Tidy Velvet Warm Wild Wise"
).split()
ANIMALS = (
    "Badger Bear Beaver Bison Bluebird Camel Cat Cheetah Crab Crane Cricket Crow Deer Dolphin Donkey Dormouse Eagle "
    "Falcon Ferret Finch Firefly Fox Frog Gecko Giraffe Goat Goose Hamster Hare Hedgehog Heron Horse Ibex Jackdaw "
    "Koala Lark Lemur Lion Lizard Llama Lynx Magpie Marmot Mole Moose Newt Ocelot Octopus Otter Owl Panda Parrot "
    "Penguin Puffin Rabbit Raven Robin Salmon Seal Squirrel Swan Tiger Turtle Walrus"
).split()


def name_of(person: str) -> str:
    """An adjective and an animal; of 30 people two share a name in one class out of ten."""
    number = int.from_bytes(hashlib.sha256(person.encode()).digest()[:8])
    return f"{ADJECTIVES[number % len(ADJECTIVES)]} {ANIMALS[number // len(ADJECTIVES) % len(ANIMALS)]}"
