"""The words of the scenes that the local teacher sets its questions in; none of them has to be unusual."""

from __future__ import annotations


def _words(text: str, between: str | None = None) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(between))


PEOPLE = _words(
    """
    Abigail Adrian Agnes Albert Alma Amara Anders Anita Arthur Astrid Axel Beatrice Bruno Camille
    Carlos Cecilia Clara Conrad Cosima Dario Delia Diego Dorothea Edgar Edith Elias Elsa Emil Esther
    Eugene Farid Felix Fiona Flora Francis Frieda Gabriel Gemma Georg Greta Gustav Hanna Harold
    Hazel Hector Helena Hugo Ida Igor Ines Ingrid Irene Isaac Ivan Jasmine Jonas Joyce Julian Kamal
    Karin Kaspar Kira Klara Lars Laura Leila Lorenz Louise Lucas Lydia Magnus Marcel Marina Martha
    Matteo Maud Milan Mira Moritz Nadia
    """
)
OTHERS = _words(
    """
    Nils Nina Noah Nora Odette Olga Oscar Otto Pablo Paula Pedro Petra Philip Priya Quentin Rafael
    Rahel Ramon Regina Renata Robert Rosa Rufus Ruth Samir Sandra Selma Simon Sofia Stella Sven
    Tamara Tariq Teresa Thea Theodor Tilda Tobias Ulrich Ursula Valentin Vera Victor Viola Walter
    Wanda Wendy Wilma Xenia Yara Yusuf Yvonne Zara Zelda Zeno Zita Alfred Bertha Caspar Dagmar
    Ernest Fatima Gilbert Hilda Ignaz Judith Konrad Leonie Melchior Norbert Ottilie Perry Rowena
    Sabine Titus Undine Verena Wolfram Adele Basil
    """
)
TOWNS = _words(
    """
    Alderby Ashmouth Barrowick Beckford Birchley Blackmere Brackwell Bramfield Brightsea Caldermoor
    Carrow Chalkdown Clifford Coldwater Copperton Cranmore Dalehurst Deepwell Dunmarsh Eastling
    Elmbridge Fairholt Fallowdale Farleigh Fenwick Foxhollow Garstone Glenrook Goldcombe Grantham
    Greywater Hadley Halewood Harrowgate Hartsfell Heatherby Highmoor Hollowell Ironbridge Juniper
    Kelsey Kestrel Kingsferry Lakeford Lambourne Larchmont Lindow Longstrand Lowick Marlow Maplewick
    Millbrook Mistley Moorgate Netherby Northam Oakhaven Oldcastle Orchard Otterburn Pebblesea
    Penrose Pinehurst Quarrington Ravensby Redcliff Ridgeway Rookley Rowanfield Saltmarsh Sandwick
    Seaton Shadwell Silverton Skelby Southmere Stonehaven Stratton Sunderley Swanmore Tallowby
    Thornbury Tidewell Underhill Upton Valemont Waterby Westerley Whitcombe Willowby Windlesea
    Winterbourne Wolfdale Woodstock Wychford Yarrow Yewtree
    """
)
_STREET_NAMES = _words(
    """
    Anchor Baker Bell Bridge Canal Castle Chapel Cherry Church Copper Dock Ferry Forge Garden
    Granary Harbour Hill Ivy Lantern Lime Linen Market Mill Orchard Poplar Quarry River Saddler Ship
    Tanner Tower Weaver
    """
)
STREETS = tuple(f"{name} {kind}" for kind in ("Street", "Lane", "Square", "Road") for name in _STREET_NAMES)
TRADES = _words(
    """
    architect archivist baker barber beekeeper blacksmith boatbuilder bookbinder botanist brewer
    bricklayer butcher captain carpenter cartographer chemist clerk clockmaker cobbler conductor
    cook cooper dentist doctor dressmaker dyer electrician engineer engraver falconer farmer
    ferryman fiddler fishmonger florist forester gardener gilder glassblower glazier goldsmith
    grocer gunsmith harbourmaster hatter innkeeper jeweller joiner judge librarian locksmith mason
    mayor mechanic midwife miller miner notary nurse optician painter pharmacist photographer pilot
    plumber porter postmaster potter printer roofer saddler sailmaker sculptor shepherd signalman
    smith stonecutter surgeon surveyor tailor tanner teacher thatcher tinsmith treasurer upholsterer
    vet watchman weaver welder wheelwright
    """
)
THINGS = _words(
    """
    anchors apples apricots aprons arrows axes barrels baskets beads beets bells belts benches
    blankets boots bottles bowls boxes bricks brooms brushes buckets buttons cabbages cables cakes
    candles canoes carpets carrots chairs cherries chisels clocks cloaks compasses crates cushions
    daggers desks diaries dishes doors drums eggs envelopes fans feathers files flags flasks flutes
    forks frames funnels garlands gloves goblets grapes guitars hammers hammocks handles harps
    helmets hinges hoes hooks horns jackets jars jugs
    """
)
GOODS = _words(
    """
    kettles kites knives ladders ladles lanterns leeks lemons lenses letters levers locks looms
    magnets maps marbles masks mats mattresses medals melons mirrors mittens mops mugs nails napkins
    needles nets oars onions oranges ovens paddles pails pans parcels peaches pears pebbles pegs
    pencils pillows pipes pitchers planks plates plums posters pots pumpkins puppets quilts rakes
    ribbons robes rockets ropes rugs saddles sails sandals saws scarves scissors shawls shells
    shields shovels sieves skates sledges spades spoons stamps stools stoves straps tables tents
    thimbles tiles torches towels trays trunks turnips umbrellas vases violins wagons wheels
    whistles wreaths
    """
)
QUALITIES = _words(
    """
    ancient battered bent blank borrowed brass bright broad broken carved cheap chipped clean copper
    cracked crooked damp dented double dusty empty faded fancy flat foreign fragile golden greasy
    half-finished heavy hollow ivory labelled large leaking light linen long loose lost matching
    muddy narrow new numbered odd old ornate painted pale paper patched plain polished precious
    round rusty sealed second-hand sharp shiny short silver slender small smooth soft spare square
    stained steel striped stolen sturdy tall tarnished thick thin tiny tin torn twisted unsold
    unusual useful valuable varnished waxed wide wooden worn
    """
)
BUILDINGS = _words(
    """
    abbey academy almshouse archive arcade armoury bakery bank barn barracks bathhouse boathouse
    brewery brickworks cannery castle chapel clinic college court dairy depot distillery forge
    foundry gallery granary greenhouse guildhall gymnasium hospital hotel inn jail kiln laundry
    lighthouse lodge mansion mill mint monastery nursery observatory orphanage pavilion pottery
    priory refinery registry sawmill smithy stable tannery tavern theatre tollhouse vault vicarage
    warehouse watermill windmill winery workhouse workshop
    """
)
EVENTS = _words(
    """
    anniversary auction ball banquet bazaar carnival ceremony christening concert conference contest
    dance election exhibition fair festival flood funeral harvest hunt inspection jubilee launch
    lottery march match opening pageant parade picnic play procession race raffle regatta rehearsal
    reunion sale shipment strike tournament trial tour unveiling vintage visit voyage vote wedding
    """
)
VEHICLES = _words(
    """
    barge bus canoe carriage cart coach convoy cutter express ferry freighter lorry omnibus raft
    ship sledge sloop steamer tanker tram trawler truck tug van wagon yacht
    """
)
WEATHERS = _words(
    """
    bitterly cold, calm and clear, cloudless, dark by noon, drizzling, dry and dusty, foggy,
    freezing, frosty, hailing, hot and still, humid, icy, mild and grey, misty, overcast, pouring,
    rather chilly, snowing, stormy, sultry, surprisingly warm, thundering, unusually quiet, wet and
    windy, windy
    """,
    between=",",
)
DAYS = _words(
    """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    """
)
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
