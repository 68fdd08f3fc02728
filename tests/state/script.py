"""
What an ordinary script keeps in the process that computes for it: script.py HOW prints, as JSON, what each case gives.

HOW is "fork" or "spawn", a process pool with that context, or "batch", which is ours. A case is a function that gets an
executor whose one worker has called the initializers below; what it does must be the same three times. Definitions
stand beside the case that they are for, as they would in a script of its own.
"""
import abc
import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import decimal
import enum
import functools
import importlib
import json
import logging
import multiprocessing
import os
import pickle
import queue
import random
import secrets
import sys
import threading
import time
import types
import typing
import weakref

import numpy as np
from osgeo import gdal, ogr, osr

import byvalue
import byvalue.deep

CASES, INITIALIZERS = {}, []
FORK = multiprocessing.get_context('fork')

gdal.UseExceptions()
ogr.UseExceptions()
osr.UseExceptions()


def case(function):
    CASES[function.__name__] = function
    return function


def initializer(function):
    INITIALIZERS.append(function)
    return function


def initialize(scale):
    """What the workers call first. One that fails is a matter of its case."""
    for each in INITIALIZERS:
        with contextlib.suppress(Exception):
            each(scale)


def told(call, *args):
    """A result or an exception as text."""
    try:
        return repr(call(*args))
    except Exception as error:
        return 'raised {!r}'.format(error)


def asked(executor, function, *args, times=1):
    """What so many calls, one after the other, give."""
    got = [told(executor.submit(function, *args).result, 60) for _ in range(times)]
    return got if times > 1 else got[0]


# ---- What initializers set ---------------------------------------------------------------------------

SETTINGS = {'scale': 1.0}
VALUES = []


class Configuration:
    kept = None

    def __init__(self):
        self.scale = 1.0


CONFIGURATION = Configuration()


@initializer
def set_all(scale):
    SETTINGS['scale'] = scale
    VALUES.append(scale)
    CONFIGURATION.scale = scale
    Configuration.kept = scale


def use_all(x):
    return (np.array([x, 2 * x]) * SETTINGS['scale'], VALUES[-1], CONFIGURATION.scale + Configuration.kept)


@case
def dict_list_object_and_class_that_the_initializer_fills(executor):
    return asked(executor, use_all, 1000, times=2)


def set_outer(scale):
    global outer_value

    def set_inner():
        global inner_value
        inner_value = scale * 2
    outer_value = scale
    set_inner()


@initializer
def set_nested(scale):
    functools.partial(set_outer)(scale)


def use_nested():
    return outer_value, inner_value     # noqa: F821  # as in many scripts, only workers have them


@case
def globals_that_only_nested_initializers_set(executor):
    return asked(executor, use_nested)


READY = threading.Event()
TICKS = []


@initializer
def start_thread(scale):
    def work():
        TICKS.append('tick')
        READY.set()
    threading.Thread(target=work, daemon=True).start()


def use_thread():
    return READY.wait(30), TICKS


@case
def thread_of_the_initializer_that_changes_globals(executor):
    return asked(executor, use_thread, times=2)


LOCAL = threading.local()


@initializer
def set_local(scale):
    LOCAL.scale = scale


@case
def thread_local_that_the_initializer_sets(executor):
    return asked(executor, get_local)


def get_local():
    return LOCAL.scale


@initializer
def set_process(scale):
    decimal.getcontext().prec = 5
    os.environ['STATE_OF_A_PROCESS'] = 'set'
    random.seed(7)
    np.seterr(divide='raise')


def use_process():
    return (decimal.Decimal(1) / 7, os.environ['STATE_OF_A_PROCESS'], random.random(),
            told(np.divide, np.ones(1), 0))


@case
def state_of_other_modules_that_the_initializer_sets(executor):
    return asked(executor, use_process, times=2)


HANDLERS = {}


def handler(function):
    HANDLERS[function.__name__] = function
    return function


@handler
def ndvi(x):
    return 'ndvi', x


@initializer
def add_handler(scale):
    HANDLERS['scaled'] = functools.partial(ndvi, scale)


def use_handlers():
    return sorted(HANDLERS), HANDLERS['ndvi'](1), HANDLERS['scaled'](), HANDLERS['ndvi'] is ndvi


@case
def registry_that_a_decorator_and_the_initializer_fill(executor):
    return asked(executor, use_handlers, times=2)


# ---- What is loaded once -----------------------------------------------------------------------------

def load():
    """Another model each time it is loaded."""
    return secrets.token_hex(8)


MODEL = None


def model():
    global MODEL
    if MODEL is None:
        MODEL = load()
    return MODEL


@functools.lru_cache(maxsize=None)
def cached_model(name):
    return load()


def use_cached_model():
    return cached_model('a')


def memoized(function):
    """Without functools.wraps, as it is written quickly."""
    cache = {}

    def look_up(*args):
        if args not in cache:
            cache[args] = function(*args)
        return cache[args]
    return look_up


@memoized
def memoized_model(name):
    return load()


def use_memoized_model():
    return memoized_model('b')


class Loader:
    @functools.cached_property
    def model(self):
        return load()

    @classmethod
    @functools.lru_cache
    def table(cls, name):
        return load()

    @functools.lru_cache
    def band(self, name):
        return load()


LOADER = Loader()


def use_loader():
    return LOADER.model, Loader.table('a'), LOADER.band('a')


@case
def models_that_are_loaded_once(executor):
    """In a global, in two kinds of caches, in three of an object."""
    return [(len(set(got)), len(got)) for got in (
        asked(executor, function, times=3) for function in (model, use_cached_model, use_memoized_model, use_loader))]


def statistics_of_cache(clear):
    info = cached_model.cache_info()
    if clear:
        cached_model.cache_clear()
    return info.hits > 0, info.currsize, cached_model.__wrapped__.__name__


@case
def cache_that_a_call_clears(executor):
    executor.submit(use_cached_model).result(60)
    return [asked(executor, statistics_of_cache, clear) for clear in (False, True, False)]


@functools.cache
def fibonacci(n):
    CALLED.append(n)
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


CALLED = []


def use_fibonacci(n):
    return fibonacci(n), len(CALLED)


@case
def recursion_with_a_cache(executor):
    return asked(executor, use_fibonacci, 30, times=2), asked(executor, fibonacci, 40)


# ---- What calls change -------------------------------------------------------------------------------

RNG = np.random.default_rng(1)


def draw():
    return int(RNG.integers(0, 10**6))


@case
def random_generator(executor):
    return asked(executor, draw, times=3)


IDS = iter(range(100))
COUNTER = collections.Counter()
TABLE = np.zeros(3)
GROUPS = collections.defaultdict(list)


def change_all(key):
    global STATE
    COUNTER[key] += 1
    TABLE[0] += 1
    GROUPS[key].append(next(IDS))
    STATE = [*STATE, key]
    return COUNTER, TABLE, GROUPS, STATE


STATE = []


@case
def globals_of_many_kinds_that_calls_change(executor):
    return asked(executor, change_all, 'a', times=3)


def change_itself(x, seen=[], *, named={}):
    change_itself.calls += 1
    seen.append(x)
    named[len(named)] = x
    return change_itself.calls, seen, named


change_itself.calls = 0


@case
def attributes_and_defaults_of_a_function_that_calls_change(executor):
    return asked(executor, change_itself, 1, times=3)


SHARED = 0


def add_one():
    global SHARED
    SHARED += 1
    return SHARED


def add_ten():
    global SHARED
    SHARED += 10
    return add_one()


@case
def two_functions_that_share_a_counter(executor):
    return [asked(executor, function) for function in (add_one, add_ten, add_one, add_ten)]


def counter():
    n = 0

    def up():
        nonlocal n
        n += 1
        return n

    def get():
        return n
    return up, get


up, get = counter()


def use_counter():
    return up(), get(), up(), get()


@case
def two_functions_that_close_over_one_counter(executor):
    return asked(executor, use_counter, times=2)


class Tally:
    """Its methods are used as functions, and nothing names their object."""
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1

    def total(self):
        return self.n


add, total = (lambda tally: (tally.add, tally.total))(Tally())


def use_methods():
    add()
    return total()


@case
def two_methods_of_one_object(executor):
    return asked(executor, use_methods, times=2)


FIRST = []
SECOND = FIRST
INSIDE = {'list': FIRST, 'own': []}
ALSO_INSIDE = [INSIDE['own']]


def use_aliases():
    FIRST.append(len(SECOND))
    INSIDE['own'].append('x')
    return FIRST is SECOND is INSIDE['list'], SECOND, INSIDE, ALSO_INSIDE


@case
def objects_with_several_names(executor):
    return asked(executor, use_aliases, times=2)


CONFIG = {'scale': 1.0}


class Product:
    config = CONFIG


@initializer
def set_config(scale):
    CONFIG['scale'] = scale


def use_product():
    return Product.config, Product.config is CONFIG


def use_only_product():
    return Product.config['scale']


@case
def global_that_is_an_attribute_of_a_class_as_well(executor):
    return asked(executor, use_only_product), asked(executor, use_product)


def forget():
    global FORGOTTEN
    value = FORGOTTEN
    del FORGOTTEN
    return value


FORGOTTEN = 'not yet'


@case
def global_that_a_call_deletes(executor):
    return [text.replace("'FORGOTTEN'", 'FORGOTTEN') for text in asked(executor, forget, times=2)]


# ---- What is fresh for each call ---------------------------------------------------------------------

class Grows:
    made = []

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        self.made.append(self.calls)
        return self.calls, len(self.made)

    def method(self):
        return self()

    @classmethod
    def of_class(cls):
        cls.made.append('c')
        return len(cls.made)

    @staticmethod
    def of_nobody():
        Grows.made.append('s')
        return len(Grows.made)


GROWS = Grows()


@case
def callable_objects_are_fresh_and_their_class_is_not(executor):
    return [asked(executor, function, times=2) for function in (
        GROWS, GROWS.method, GROWS.__call__, Grows.of_class, Grows.of_nobody, functools.partial(GROWS))]


def grow(things, more=()):
    things.append(len(things))
    return things, things is FIRST, len(more)


@case
def arguments_are_fresh_though_they_are_globals_too(executor):
    return asked(executor, grow, FIRST, times=2), asked(executor, functools.partial(grow, CALLED), times=2)


# ---- Kinds of functions and classes ------------------------------------------------------------------

def plus_one(x):
    plus_one.calls += 1
    return x + 1


plus_one.calls = 0
vectorized = np.vectorize(plus_one, otypes=[float])


def use_vectorized():
    return vectorized(np.arange(3)), plus_one.calls, vectorized.pyfunc is plus_one


@case
def function_behind_a_wrapper_of_numpy(executor):
    return asked(executor, use_vectorized, times=2)


@functools.singledispatch
def describe(thing):
    return 'something'


@describe.register
def describe_number(thing: int):
    DESCRIBED.append(thing)
    return 'number', len(DESCRIBED)


@describe.register(list)
def _(thing):
    return [describe(each) for each in thing]


DESCRIBED = []


def use_describe():
    describe.register(str, lambda thing: 'text')
    return describe(1), describe([1, None]), describe('a'), describe.registry[int] is describe_number


@case
def generic_function(executor):
    return asked(executor, use_describe, times=2), asked(executor, describe, 2)


class Decorator:
    """A decorator that is a class, as for timing or retrying."""
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function, self.calls, self.lock = function, 0, threading.Lock()

    def __call__(self, *args):
        with self.lock:
            self.calls += 1
            return self.calls, self.function(*args)


@Decorator
def decorated(x):
    return x, decorated.calls


def use_decorated():
    return decorated(1), decorated.__wrapped__.__name__


@case
def function_that_is_decorated_with_an_object(executor):
    return asked(executor, use_decorated, times=2)


LOCK, CONDITION, WAITING = threading.RLock(), threading.Condition(), queue.Queue()


def use_locks():
    with LOCK, LOCK, CONDITION:
        WAITING.put('x')
        return LOCK.acquire(False), WAITING.qsize()


@case
def locks_and_queues_of_the_script(executor):
    return asked(executor, use_locks, times=2)


@contextlib.contextmanager
def entered(name):
    ENTERED.append(name)
    yield len(ENTERED)


ENTERED = []


async def wait_a_bit():
    await asyncio.sleep(0)
    ENTERED.append('async')
    return len(ENTERED)


def numbers():
    for n in range(2):
        ENTERED.append(n)
        yield len(ENTERED)


def use_contexts():
    with entered('a') as n:
        return n, asyncio.run(wait_a_bit()), list(numbers())


@case
def contexts_coroutines_and_generators(executor):
    return asked(executor, use_contexts, times=2)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    STEPS.append(n)
    return n != 0 and even(n - 1)


STEPS = []
even.other, odd.other = odd, even
Triple = collections.namedtuple('Triple', 'a b c')


def use_each_other():
    return even(4), len(STEPS), even.other is odd, odd.other.other is odd, type(Triple(1, 2, 3)) is Triple


@case
def functions_that_know_each_other(executor):
    return asked(executor, use_each_other, times=2)


class Band(enum.Enum):
    RED, NIR = 4, 5

    @property
    def number(self):
        NUMBERED.append(self.name)
        return self.value


NUMBERED = []
WAVELENGTHS = {Band.RED: 0.66, Band.NIR: 0.84}


class Flag(enum.IntFlag):
    CLOUD, SNOW = 1, 2


class Sensor(enum.Enum):
    OLI, TM = (30, 9), (30, 7)

    def __init__(self, resolution, bands):
        self.resolution, self.bands = resolution, bands


def use_bands(band, flag):
    return (band is Band.NIR, WAVELENGTHS[band], band.number, len(NUMBERED), flag is Flag.CLOUD,
            Flag.CLOUD | Flag.SNOW, Sensor.TM.bands)


@case
def enums_stay_themselves(executor):
    back = executor.submit(itself, Band.NIR).result(60)
    return asked(executor, use_bands, Band.NIR, Flag.CLOUD, times=2), back is Band.NIR


def itself(thing):
    return thing


@dataclasses.dataclass
class Window:
    left: int
    names: 'typing.List[str]' = dataclasses.field(default_factory=list)
    made: typing.ClassVar[int] = 0

    def __post_init__(self):
        type(self).made += 1


@dataclasses.dataclass(order=True)
class Padded(Window):
    margin: int = 2
    parent: 'typing.Optional[Window]' = None


WINDOW, PADDED = Window(3), Padded(1)


def use_windows(window):
    other = Padded(window.left + 1, margin=3, parent=window)
    hints = typing.get_type_hints(Padded)
    return (isinstance(window, Window), other, Padded.made, Window.made, hints['parent'] == typing.Optional[Window],
            [field.name for field in dataclasses.fields(Padded)])


@case
def dataclasses_stay_themselves(executor):
    back = executor.submit(itself, PADDED).result(60)
    return asked(executor, use_windows, WINDOW, times=2), type(back) is Padded, Padded.made


class Registry(type):
    known = {}

    def __new__(meta, name, bases, namespace):
        made = super().__new__(meta, name, bases, namespace)
        Registry.known[name] = made
        return made


class Plugin(metaclass=Registry):
    pass


class Sharpen(Plugin):
    def __init_subclass__(cls, **options):
        SUBCLASSES.append(cls.__name__)


SUBCLASSES = []


class Sharper(Sharpen):
    pass


def use_plugins():
    return sorted(Registry.known), Registry.known['Sharper'] is Sharper, SUBCLASSES, Sharper.__mro__[1] is Sharpen


@case
def classes_that_a_metaclass_registers(executor):
    return asked(executor, use_plugins, times=2)


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self):
        """Of the shape."""


@Shape.register
class Pixel:
    def area(self):
        return 1


class Node:
    """Two classes that need each other while they are made."""
    default = None


class Leaf(Node):
    pass


Node.default = Leaf()


def use_shapes():
    Node.default.seen = getattr(Node.default, 'seen', 0) + 1
    return isinstance(Pixel(), Shape), told(Shape)[:40], type(Node.default) is Leaf, Node.default.seen, Leaf.default.seen


@case
def abstract_classes_and_classes_in_circles(executor):
    return asked(executor, use_shapes, times=2)


class Positive:
    """A descriptor."""
    checked = 0

    def __set_name__(self, owner, name):
        self.name = '_' + name

    def __get__(self, thing, owner=None):
        return self if thing is None else getattr(thing, self.name)

    def __set__(self, thing, value):
        Positive.checked += 1
        setattr(thing, self.name, value)


class Radiometer:
    gain, offset = Positive(), Positive()
    __slots__ = '_gain', '_offset'

    def __init__(self, gain, offset):
        self.gain, self.offset = gain, offset


RADIOMETER = Radiometer(1, 2)


def use_descriptors(radiometer):
    radiometer.gain += 1
    return radiometer.gain, radiometer.offset, Positive.checked, isinstance(radiometer, Radiometer)


@case
def descriptors_and_slots(executor):
    return asked(executor, use_descriptors, RADIOMETER, times=2)


RESOLUTION = 10


def resolution():
    return RESOLUTION


class Cell:
    """Code of the script runs while one is unpickled."""
    def __init__(self, column):
        self.column = column

    def __getstate__(self):
        return self.column * resolution()

    def __setstate__(self, state):
        self.column = state // resolution()
        RESTORED.append(self.column)

    def __eq__(self, other):
        return hash(self) == hash(other)

    def __hash__(self):
        return self.column * RESOLUTION


RESTORED = []
CELLS = {Cell(3): 'three', Cell(4): 'four'}


def use_cells(cell):
    return CELLS[cell], sorted(key.column for key in CELLS), cell.column


@case
def objects_whose_unpickling_runs_code_of_the_script(executor):
    return asked(executor, use_cells, Cell(3)), asked(executor, use_cells, Cell(4))


class Cloudy(Exception):
    def __init__(self, tile, percent):
        super().__init__('tile {} is {}% cloudy'.format(tile, percent))
        self.percent = percent

    def __reduce__(self):
        return Cloudy, ('x', self.percent)


def fails(percent):
    RAISED.append(percent)
    raise Cloudy('x', percent)


RAISED = []


@case
def exceptions_of_the_script(executor):
    try:
        executor.submit(fails, 80).result(60)
    except Cloudy as error:
        return str(error), error.percent, asked(executor, len, RAISED)


class Meaningless:
    def __reduce__(self):
        return 'NOTHING'


NOTHING = Meaningless()


def use_nothing(thing):
    return thing is NOTHING


@case
def object_that_is_pickled_by_its_name(executor):
    return asked(executor, use_nothing, NOTHING), executor.submit(itself, NOTHING).result(60) is NOTHING


WEAK, WEAK_VALUES, WEAK_SET = weakref.WeakKeyDictionary(), weakref.WeakValueDictionary(), weakref.WeakSet()


def use_weak():
    WEAK[CONFIGURATION] = WEAK.get(CONFIGURATION, 0) + 1
    WEAK_VALUES['c'] = CONFIGURATION
    WEAK_SET.add(CONFIGURATION)
    return WEAK[CONFIGURATION], list(WEAK_VALUES), len(WEAK_SET)


@case
def caches_that_hold_nothing(executor):
    return asked(executor, use_weak, times=2)


Number = typing.TypeVar('Number')
Metres = typing.NewType('Metres', float)


class Stack(typing.Generic[Number]):
    depth = 0

    def push(self, thing: Number) -> 'Stack[Number]':
        Stack.depth += 1
        return self


def use_types():
    return Stack[int]().push(3).depth, Metres(3.0), typing.get_type_hints(Stack.push)['return'] == Stack[Number]


@case
def generic_classes_and_types(executor):
    return asked(executor, use_types, times=2)


# ---- Names -------------------------------------------------------------------------------------------

def helper(x):
    HELPED.append(x)
    return len(HELPED)


HELPED = []


def use_imports(x):
    from __main__ import helper as imported, HELPED as too
    import __main__

    class Inside:
        shared = HELPED
    return (imported is helper is __main__.helper, imported(x), too is HELPED is Inside.shared,
            importlib.import_module('__main__') is __main__, helper.__globals__ is globals())


@case
def imports_from_the_script(executor):
    return asked(executor, use_imports, 1, times=2)


def use_pickle(window):
    again = pickle.loads(pickle.dumps([window, Padded(5), helper, Band.RED, np.float32(3)]))
    return type(again[0]) is Window, again[1].left, again[2] is helper, again[3] is Band.RED, again[4]


@case
def pickling_in_the_function(executor):
    return asked(executor, use_pickle, WINDOW)


def row(x):
    return x * SETTINGS['scale'], os.getpid() != PARENT


PARENT = None


def use_pool():
    global PARENT
    PARENT = os.getpid()
    with FORK.Pool(2) as pool:
        pooled = pool.map(row, range(3))
    with concurrent.futures.ProcessPoolExecutor(2, FORK) as processes:
        return pooled, list(processes.map(row, range(3)))


@case
def pools_in_the_function(executor):
    return asked(executor, use_pool, times=2)


def row_of_any(x):
    return x * len(SHAPES), isinstance(x, int)


SHAPES = [1, 2]


def use_other_pools(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.map(row_of_any, range(3))


@case
def pools_in_the_function_that_start_python_anew(executor):
    return [asked(executor, use_other_pools, method) for method in ('spawn', 'forkserver')]


def use_file():
    return os.path.basename(__file__), row.__module__ == __name__, sys.modules[__name__].row is row


@case
def names_of_the_script(executor):
    return asked(executor, use_file)


# ---- Modules that are registered by value ------------------------------------------------------------

@initializer
def configure_package(scale):
    byvalue.configure(scale)


def use_package(x):
    return byvalue.scaled(x), byvalue.counted('a'), byvalue.deep.Tile.made


@case
def package_by_value(executor):
    return asked(executor, use_package, 1000, times=2), asked(executor, byvalue.deep.count, 'b')


@case
def classes_of_a_package_by_value(executor):
    return type(executor.submit(byvalue.deep.Tile, 'c').result(60)) is byvalue.deep.Tile


def use_simple_module():
    import byvalue.deep as deep
    return isinstance(byvalue, types.ModuleType), deep is byvalue.deep is sys.modules['byvalue.deep']


@case
def modules_are_modules(executor):
    return asked(executor, use_simple_module)


# ---- GDAL --------------------------------------------------------------------------------------------

def use_gdal():
    return gdal.GetUseExceptions(), ogr.GetUseExceptions(), osr.GetUseExceptions()


@case
def exceptions_of_gdal(executor):
    return asked(executor, use_gdal)


# ---- Two workers -------------------------------------------------------------------------------------

def timed(function):
    time.sleep(0.05)
    return os.getpid(), function()


def each_loads_once(executor, function):
    """Twelve blocks, however the workers share them."""
    got = list(executor.map(timed, [function] * 12))
    return len(set(got)) == len({pid for pid, model in got})


def main(how):
    if how == 'batch':
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
        import cloudpickle
        import rios_awsbatch
        rios_awsbatch.WATCH_SECONDS = 1
        cloudpickle.register_pickle_by_value(byvalue)
        new = rios_awsbatch.AWSBatchExecutor
        logging.basicConfig()
    else:
        new = functools.partial(concurrent.futures.ProcessPoolExecutor, mp_context=multiprocessing.get_context(how))
    with new(1, initializer=initialize, initargs=(0.0001,)) as one, new(2) as two:
        found = {name: told(each, one) for name, each in CASES.items()}
        found['two_workers_load_a_global_once_each'] = told(each_loads_once, two, model)
        found['two_workers_load_a_cache_once_each'] = told(each_loads_once, two, use_cached_model)
    print(json.dumps(found))


if __name__ == '__main__':
    main(sys.argv[1])
