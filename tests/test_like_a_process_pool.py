"""
The same script gives the same results, order and exceptions as with concurrent.futures.ProcessPoolExecutor.

Each case is a piece of a script, run with a process pool of this machine and with AWS Batch; what it gives is
compared by `told`. Most share one executor of two workers, which must be as good as new after each case.
What a process pool cannot do, or does worse, is at the end, with the reason. What needs no process pool to compare
with is in test_ordinary_python.py.
"""
import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import decimal
import enum
import functools
import gc
import hashlib
import itertools
import multiprocessing
import operator
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import unittest.mock
import weakref
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import numpy
import pytest

from rios_awsbatch import AWSBatchException, AWSBatchExecutor
from tests.helpers import PATIENCE, assert_nothing_left, left_of, main_script, output_of, wait_until

# As a user's script: what it defines travels, since workers cannot import it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENT = PATIENCE
FORK = multiprocessing.get_context('fork')


# ---------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------

def told(value):
    """What a value is, in terms that can be compared where its own == says too little (1 and 1.0, nan)."""
    if isinstance(value, concurrent.futures.Future):
        return outcome(value)
    if isinstance(value, BaseException):
        if 'pickl' in text_of(value):
            return 'cannot be pickled'      # each pickler says it in words of its own
        inner = [told(each) for each in getattr(value, 'exceptions', [])]
        return (type(value).__qualname__, told(value.args), text_of(value), told(vars(value)), inner)
    if isinstance(value, numpy.ndarray) and value.dtype != object:
        return ('array', value.dtype.descr, value.shape, value.flags.f_contiguous, value.flags.writeable,
                hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, dict):
        return type(value).__qualname__, [(told(key), told(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value).__qualname__, [told(each) for each in value]
    return type(value).__qualname__, text_of(value, repr)


def text_of(value, text=str):
    try:
        return re.sub(' at 0x[0-9a-f]+|AWSBatch|ProcessPool', '', text(value))
    except Exception as error:
        return 'no text: {}'.format(type(error).__qualname__)


def outcome(future):
    """How a future ends, the exceptions included that end other programs."""
    try:
        error = future.exception(PATIENT)
    except concurrent.futures.CancelledError:
        return 'cancelled'
    return told(future.result()) if error is None else ('raised', told(error))


def outcome_of(case, executor):
    try:
        return told(case(executor))
    except Exception as error:
        return 'the script itself raised', told(error)


def assert_same(case, executor, pool):
    assert outcome_of(case, executor) == outcome_of(case, pool)


@pytest.fixture(scope='module')
def pool():
    with ProcessPoolExecutor(2, FORK) as made:
        assert list(made.map(abs, range(4))) == [0, 1, 2, 3]      # begin before any executor of ours
        yield made


@pytest.fixture(scope='module')
def kept(pool):
    made = []
    yield made
    for executor in made:
        executor.shutdown()
        assert_nothing_left(executor.run)


@pytest.fixture
def executor(kept):
    if not kept:
        kept.append(AWSBatchExecutor(2))
    yield kept[-1]
    try:
        assert [kept[-1].submit(pow, x, 2).result(PATIENT) for x in range(3)] == [0, 1, 4]
    except BaseException:
        kept.pop().shutdown(wait=False, cancel_futures=True)
        raise


SHARED, OWN = {}, {}        # cases by name: those of an executor, and those that make one of their own


def case(function):
    SHARED[function.__name__] = function


def own_case(function):
    OWN[function.__name__] = function


# ---------------------------------------------------------------------------------------------
# Functions, and their state
# ---------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Scale:
    factor: object

    def __call__(self, x):
        return x * self.factor


@dataclasses.dataclass(frozen=True)
class Lookup:
    name: str
    table: dict = dataclasses.field(compare=False)

    def __call__(self, x):
        return self.table[x]


class Gain:
    """A function with a state: `gain` is the script's, `calls` what the function itself does to it."""
    def __init__(self, gain=1):
        self.gain, self.calls = gain, 0

    def __call__(self, *args):
        self.calls += 1
        return self.gain, self.calls

    @classmethod
    def of_class(cls, x):
        return cls.__name__, x

    @staticmethod
    def of_nobody(x):
        return -x


class Unhashable(Gain):
    def __eq__(self, other):
        return True


class Incomparable(Gain):
    def __eq__(self, other):
        raise RuntimeError('what is equal?')

    def __hash__(self):
        raise RuntimeError('what is a hash?')


class Alias(Gain):
    """All its instances are equal."""
    def __eq__(self, other):
        return type(other) is Alias

    def __hash__(self):
        return 7


class OddName(Gain):
    def __init__(self, name):
        super().__init__()
        self.__name__ = name


class Nameless(Gain):
    def __getattr__(self, name):
        raise RuntimeError(name) if name == '__name__' else AttributeError(name)


def square(x, seconds=0.0):
    time.sleep(seconds)
    return x * x


def factorial(n):
    return n * factorial(n - 1) if n else 1


def append(thing, things):
    things.append(thing)
    return things


@functools.lru_cache
def remembered(x):
    return x + 1


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args):
        return 'wrapped', function(*args)
    return wrapper


@wrapped
def decorated(x):
    return x


async def coroutine():
    return 5


def numbers(n=3):
    yield from range(n)


SHARED.update({
    'frozen_dataclasses_that_are_equal_but_different': lambda e: [
        e.submit(Scale(k), 3) for k in (1, 1.0, True)],
    'dataclasses_whose_table_is_not_compared': lambda e: [
        e.submit(Lookup('a', {0: table}), 0) for table in ('A', 'B', 'C')],
    'functions_that_are_all_equal': lambda e: [e.submit(Alias(gain)) for gain in (1, 2, 3)],
    'function_that_cannot_be_hashed': lambda e: [e.submit(Unhashable(gain)) for gain in (1, 2)],
    'function_whose_hash_raises': lambda e: [e.submit(Incomparable(gain)) for gain in (1, 2)],
    'function_that_changes_itself': lambda e: list(e.map(Gain(5), range(9))),
    'method_that_changes_its_object': lambda e: list(e.map(Gain(5).__call__, range(9))),
    'partial_whose_list_grows': lambda e: list(e.map(functools.partial(append, things=[]), range(9))),
    'argument_that_grows': lambda e: [e.submit(append, 1, things) for things in [[]] * 5],
    'function_named_by_a_number': lambda e: e.submit(OddName(7)),
    'function_whose_name_raises': lambda e: e.submit(Nameless()),
    'function_whose_name_is_very_long': lambda e: [e.submit(OddName('n' * 3_000_000)) for _ in range(3)],
    'function_whose_name_has_any_characters': lambda e: e.submit(OddName('\ud800\n\0"<&\x1b[31m')),
    'recursion': lambda e: e.submit(factorial, 20),
    'recursion_without_end': lambda e: e.submit(factorial, -1).exception(PATIENT).__class__.__name__,
    'partials_of_partials': lambda e: e.submit(functools.partial(functools.partial(pow, 3), 4), 5),
    'builtins_and_operators': lambda e: [
        e.submit(len, 'abc'), e.submit(operator.itemgetter(1), 'abc'), e.submit(operator.neg, 3),
        e.submit(operator.methodcaller('upper'), 'a'),
        e.submit('{}-{}'.format, 1, 2), e.submit(str.join, ',', 'abc'), e.submit([3, 1].index, 1)],
    'classes_and_their_methods': lambda e: [
        e.submit(Scale, 3), e.submit(Gain.of_class, 1), e.submit(Gain.of_nobody, 1),
        e.submit(Gain().of_class, 2)],
    'decorated_functions': lambda e: [
        e.submit(decorated, 1), e.submit(remembered, 1), e.submit(functools.partial(decorated), 2)],
    'function_with_arguments_named_like_ours': lambda e: e.submit(
        dict, fn=1, self=2, args=3, kwargs=4, timeout=5, label=6, id=7),
    'no_function': lambda e: e.submit(),
    'function_given_by_name': lambda e: e.submit(fn=square),
    'what_cannot_be_called': lambda e: [e.submit(None), e.submit('square', 2), e.submit(3)],
    'wrong_number_of_arguments': lambda e: [
        e.submit(square), e.submit(square, 1, 2, 3), e.submit(square, y=1)],
    'coroutines_and_generators_as_results': lambda e: [e.submit(coroutine), e.submit(numbers)],
})


@case
def function_whose_state_the_script_changes(executor):
    function, got = Gain(), []
    for function.gain in (1, 2, 3):
        got.append(executor.submit(function).result(PATIENT))
    return got, function.calls


@case
def method_of_an_object_that_the_script_changes(executor):
    thing, got = Gain(), []
    for thing.gain in (1, 2, 3):
        got.append(executor.submit(thing.__call__).result(PATIENT))
    return got


@case
def argument_that_the_script_changes(executor):
    things, got = [], []
    for n in range(3):
        things.append(n)
        got.append(executor.submit(tuple, things).result(PATIENT))
    return got


@case
def array_in_a_function_that_the_script_changes(executor):
    table, got = numpy.zeros(50_000), []
    for table[0] in (1, 2, 3):
        got.append(executor.submit(functools.partial(numpy.sum, table)).result(PATIENT))
    return got


# ---------------------------------------------------------------------------------------------
# Arguments and results
# ---------------------------------------------------------------------------------------------

class Band(enum.Enum):
    RED, NIR = 4, 5


class Flag(enum.Flag):
    CLOUD, SHADOW, SNOW = 1, 2, 4


Point = collections.namedtuple('Point', 'x y')


class NoText:
    def __repr__(self):
        raise RuntimeError('no text')
    __str__ = __repr__


class LongText:
    def __repr__(self):
        return 'long' * 1_000_000


class array(list):
    """Named like something that reprlib knows."""


class OddShape:
    @property
    def shape(self):
        raise RuntimeError('no shape')


class NoAttributes:
    """As a proxy whose connection is gone; only what pickle asks for is there."""
    def __getattribute__(self, name):
        if name in ('__reduce_ex__', '__reduce__', '__class__'):
            return object.__getattribute__(self, name)
        raise RuntimeError('no {}'.format(name))

    def __reduce_ex__(self, protocol):
        return NoAttributes, ()


class NoTruth:
    """As an array: neither true nor false, and equal to nothing in particular."""
    def __bool__(self):
        raise ValueError('neither')
    __len__ = __eq__ = __bool__
    __hash__ = None


class Refuses:
    """What raises when it is pickled."""
    def __reduce__(self):
        raise ZeroDivisionError('cannot be pickled today')


class Itself:
    def __init__(self):
        self.me, self.all = self, [self]

    def __repr__(self):
        return 'Itself {}'.format(self.me is self and self.all[0] is self)


def whole(x):
    return x


def type_name(*things):
    return [type(thing).__name__ for thing in things]


def are_one(a, b):
    return a is b


def in_place(image):
    image[0] = 7
    return image


def flipped(image):
    return image[::-1]


def nested(depth, width=1):
    """Lists in lists, small however many they seem to be."""
    thing = ['leaf' * 10]
    for _ in range(depth):
        thing = [thing] * width
    return thing


def digest(data):
    return len(data), hashlib.sha256(data).hexdigest()


def noise(count):
    return numpy.random.default_rng(count).bytes(count)


def read_only(image):
    image.setflags(write=False)
    return image


VALUES = {      # each goes to a worker and comes back
    'nothing': [None, ..., NotImplemented, (), [], {}, set(), frozenset(), '', b''],
    'numbers': [0, -1, 2**200, 1.5, -0.0, float('nan'), float('-inf'), 1j, True, decimal.Decimal('1.10')],
    'texts': ['é\n\0', '\ud800', 'x' * 300_000, b'\xff', bytearray(b'ab')],
    'containers': [[1, (2, {3: [4]})], {'a': {1}}, collections.deque([1], 3), collections.Counter('aab'),
                   collections.OrderedDict(b=1, a=2), range(3), slice(1, None), {(1, 2): None, None: 3}],
    'things_of_the_library': [datetime.date(2026, 2, 28), pathlib.PurePosixPath('/a/b'), re.compile('a+'),
                              types.SimpleNamespace(a=1), datetime.timedelta(1.5)],
    'enums_dataclasses_tuples_with_names': [Band.NIR, Flag.CLOUD | Flag.SNOW, Scale(2.5), Point(1, 2.0),
                                            Itself()],
    'classes_and_functions': [int, numpy.ndarray, Scale, Band, square, len, ValueError,
                              functools.partial(square, 2)],
    'scalars_of_numpy': [numpy.uint8(7), numpy.float32(0.1), numpy.bool_(True),
                         numpy.datetime64('2026-02-28'), numpy.dtype('u2'), numpy.float64('nan')],
    'arrays': [numpy.zeros(0), numpy.array(5), numpy.arange(24).reshape(2, 3, 4),
               numpy.asfortranarray(numpy.ones((3, 5))), numpy.arange(20)[::3],
               numpy.arange(12).reshape(3, 4).T,
               numpy.array([(1, 2.5)], dtype=[('a', 'u1'), ('b', 'f8')]), numpy.array(['a', 'bc']),
               numpy.array([None, {}], dtype=object), numpy.array(['NaT'], dtype='M8[s]')],
    'masked_array': numpy.ma.masked_equal([1, 2, 3], 2),
    'large_array': numpy.random.default_rng(1).integers(0, 2**16, (6, 600, 600), dtype=numpy.uint16),
    'list_of_very_many': list(range(200_000)),
    'exceptions_as_values': [ValueError('x', 1), KeyboardInterrupt(), OSError(2, 'No such file', 'a.tif')],
    'lists_in_lists': nested(6, 6),
    'lists_in_many_lists': nested(150),
}
SHARED.update({'value_' + name: functools.partial(lambda value, e: e.submit(whole, value), value)
               for name, value in VALUES.items()})
SHARED.update({
    'class_of_arrays_as_an_argument': lambda e: e.submit(type_name, numpy.ndarray),
    'arguments_with_odd_shapes': lambda e: [e.submit(type_name, each) for each in (
        types.SimpleNamespace(shape=2.5), types.SimpleNamespace(shape='abc'),
        types.SimpleNamespace(shape=[[1]]), types.SimpleNamespace(shape=range(10**12)), OddShape())],
    'arguments_without_a_text': lambda e: [e.submit(type_name, each) for each in (
        NoText(), [NoText()], {NoText(): NoText()}, (NoText(),), NoTruth(), [NoTruth()], NoAttributes(),
        [NoAttributes()])],
    'arguments_with_a_long_text': lambda e: [e.submit(type_name, each) for each in (
        LongText(), [LongText()], {LongText(): LongText()}, [[LongText()] * 6] * 6, 'x' * 10**7,
        {'k' * 10**6: 1})],
    'argument_named_like_an_array': lambda e: [e.submit(len, array()), e.submit(len, array([1, 2]))],
    'very_many_arguments': lambda e: e.submit(type_name, *range(5000)),
    'keyword_that_is_no_name': lambda e: e.submit(dict, **{'é \n': NoTruth, '': 1}),
    'arguments_that_are_one_object': lambda e: [
        e.submit(are_one, *[[]] * 2), e.submit(are_one, a=NoText, b=NoText)],
    'array_that_is_changed_in_place': lambda e: [e.submit(in_place, numpy.zeros(n)) for n in (3, 100_000)],
    'broadcast_array': lambda e: e.submit(whole, numpy.broadcast_to(numpy.arange(3), (4, 3))),
    'result_that_is_a_view': lambda e: e.submit(flipped, numpy.arange(90_000).reshape(300, 300)),
    'results_can_be_changed': lambda e: in_place(e.submit(flipped, numpy.arange(90_000)).result(PATIENT)),
    'arguments_of_every_size': lambda e: [e.submit(digest, noise(n)) for n in (
        0, 1, 140_000, 196_608, 262_143, 700_000, 786_432, 1_048_575, 1_048_576, 3_000_000)],
    'results_of_every_size': lambda e: [e.submit(noise, n) for n in (
        1, 140_000, 196_608, 262_143, 700_000, 786_432, 1_048_575, 1_048_576, 3_000_000)],
    'arguments_that_cannot_be_pickled': lambda e: [
        e.submit(whole, 1), e.submit(whole, numbers()), e.submit(whole, 2), e.submit(whole, threading.Lock()),
        e.submit(whole, 3)],
    'argument_that_refuses': lambda e: [
        e.submit(whole, 1), e.submit(type_name, Refuses()), e.submit(whole, 2)],
    'arguments_of_map_that_cannot_be_pickled': lambda e: until_it_raises(
        e.map(whole, [1, 2, threading.Lock(), 3])),
    'results_that_cannot_be_pickled': lambda e: [
        e.submit(whole, 1), e.submit(threading.Lock), e.submit(numbers), e.submit(Refuses),
        e.submit(whole, 2)],
    'functions_that_cannot_be_pickled': lambda e: [
        e.submit(whole, 1), e.submit(threading.Lock().acquire), e.submit(functools.partial(whole, numbers())),
        e.submit(whole, 2)],
    'futures_and_executors_as_arguments': lambda e: [e.submit(whole, e), e.submit(whole, e.submit(whole, 1))],
    'argument_too_deep_to_be_pickled': lambda e: [e.submit(len, nested(100_000)), e.submit(whole, 1)],
    'result_too_deep_to_be_pickled': lambda e: [e.submit(nested, 100_000), e.submit(whole, 1)],
    'mocks_change_nothing_for_others': lambda e: [
        bool(outcome_of(lambda e: e.submit(*mocks), e)) and e.submit(whole, 1)
        for mocks in ([whole, unittest.mock.MagicMock()], [unittest.mock.MagicMock(), 1])],
})


def until_it_raises(results):
    """What an iterator gives, the exception that ends it included, and what it gives then."""
    got = []
    while True:
        try:
            got.append(next(results))
        except StopIteration:
            return got
        except BaseException as error:
            got.append(error)
            return got, list(results)


# ---------------------------------------------------------------------------------------------
# Exceptions
# ---------------------------------------------------------------------------------------------

class Coded(Exception):
    """An exception with arguments and attributes of its own."""
    def __init__(self, message, code=0, *, tile=None):
        super().__init__(message, code)
        self.tile = tile


class Mute(Exception):
    def __str__(self):
        raise RuntimeError('no text')
    __repr__ = __str__


class Quits(BaseException):
    pass


class Returned(Exception):
    """What pickles as something that is no exception at all."""
    def __reduce__(self):
        return str, ('not an exception',)


def fail(error):
    raise error


def fail_with_a_cause():
    try:
        {}['band 7']
    except KeyError as error:
        raise ValueError('no such band') from error


def fail_with_a_note():
    error = ValueError('cloudy')
    error.add_note('in tile 7')
    raise error


def fail_in_a_group():
    inner = ExceptionGroup('more', [KeyError('a'), Coded('b', 3)])      # noqa: F821  # since 3.11
    raise ExceptionGroup('many', [ValueError(1), inner])                # noqa: F821


def fail_while_failing():
    try:
        raise KeyError('first')
    finally:
        raise ValueError('second')


def fail_in_circles():
    error = ValueError('round')
    error.__cause__ = KeyError('and round')
    error.__cause__.__cause__ = error
    raise error


def fail_for(bad, x):
    if x in bad:
        raise LookupError(x)
    return x


ERRORS = {
    'usual': [ValueError('bad'), KeyError('band 7'), ZeroDivisionError(), AssertionError('a', 1),
              NotImplementedError(), OverflowError('é\n\ud800'), RecursionError('deep')],
    'with_arguments': [OSError(28, 'Disk full', 'a.tif'), UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad'),
                       subprocess.CalledProcessError(3, ['a'], 'out'), Coded('cloudy', 4, tile=(1, 2))],
    'of_futures': [concurrent.futures.CancelledError('c'), concurrent.futures.TimeoutError('t'),
                   concurrent.futures.BrokenExecutor('b'), concurrent.futures.InvalidStateError('i')],
    'without_a_text': [Mute(), Mute('a', 1)],
    'that_end_programs': [KeyboardInterrupt(), SystemExit(), SystemExit(3), SystemExit('bye'), Quits('now'),
                          GeneratorExit()],
    'that_end_loops': [StopIteration(3), StopAsyncIteration()],
    'with_a_long_text': [ValueError('long' * 500_000)],
    'with_data': [ValueError(numpy.arange(100_000))],
}
SHARED.update({'exceptions_' + name: functools.partial(
    lambda errors, e: [e.submit(fail, each) for each in errors], errors) for name, errors in ERRORS.items()
})
SHARED.update({
    'exception_with_a_note': lambda e: e.submit(fail_with_a_note),
    'exceptions_in_a_group': lambda e: e.submit(fail_in_a_group),
    'exception_in_an_exception': lambda e: e.submit(fail_while_failing),
    'exceptions_that_cause_each_other': lambda e: e.submit(fail_in_circles),
    'exception_class_as_a_function': lambda e: e.submit(ValueError, 'a result'),
    'exit_in_the_function': lambda e: [e.submit(sys.exit, 3), e.submit(sys.exit, 'bye'), e.submit(whole, 1)],
    'map_over_calls_that_fail': lambda e: until_it_raises(
        e.map(functools.partial(fail_for, {3, 5}), range(8))),
    'map_over_a_function_that_ends_loops': lambda e: until_it_raises(e.map(fail, [StopIteration(3)])),
    'map_over_a_function_that_ends_programs': lambda e: until_it_raises(
        e.map(fail, [KeyboardInterrupt('k')])),
})


@case
def remote_traceback_is_the_cause(executor):
    error = executor.submit(fail_with_a_cause).exception(PATIENT)
    return [word in str(error.__cause__) for word in (
        'in fail_with_a_cause', "KeyError: 'band 7'", 'direct cause', 'ValueError: no such band')]


@case
def result_and_exception_can_be_asked_for_again(executor):
    future = executor.submit(fail, ValueError('x'))
    first = future.exception(PATIENT)
    with pytest.raises(ValueError) as raised:
        future.result()
    fine = executor.submit(list, 'ab')
    return (raised.value is first is future.exception(), fine.result(PATIENT) is fine.result(),
            fine.exception())


# ---------------------------------------------------------------------------------------------
# What functions do: signals, forks, processes, threads
# ---------------------------------------------------------------------------------------------

class TooSlow(Exception):
    pass


def with_time_out(limit, function, *args):
    """The usual time-out: a timer and a handler that raises."""
    def ring(number, frame):
        raise TooSlow('after {} s'.format(limit))
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def signals_itself(number):
    """A handler of its own for a signal that it sends to itself."""
    got = []
    before = signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
    try:
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 20
        while not got and time.monotonic() < deadline:
            time.sleep(0.01)
        return got
    finally:
        signal.signal(number, before)


def interrupts_itself():
    try:
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)
        return 'nothing happened'
    except KeyboardInterrupt:
        return 'interrupted'


def uses_asyncio():
    async def work():
        loop, rung = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGALRM, rung.set)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        await asyncio.wait_for(rung.wait(), 20)
        loop.remove_signal_handler(signal.SIGALRM)
        return await asyncio.gather(asyncio.sleep(0.01, 'a'), asyncio.to_thread(square, 3))
    return asyncio.run(work())


def terminates_a_child(method):
    child = multiprocessing.get_context(method).Process(target=time.sleep, args=(120,))
    child.start()
    try:
        child.terminate()
        child.join(30)
        return child.exitcode
    finally:
        child.kill()
        child.join()


def uses_a_pool(count):
    with multiprocessing.get_context('fork').Pool(2) as inner:      # leaving it terminates its processes
        return inner.map(abs, range(-count, 0))


def uses_executors():
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        with ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as processes:
            return list(threads.map(abs, range(-9, 0))), list(processes.map(abs, range(-9, 0)))


def uses_a_queue():
    context = multiprocessing.get_context('fork')
    answers = context.SimpleQueue()
    children = [context.Process(target=answers.put, args=(n,)) for n in range(3)]
    for child in children:
        child.start()
    got = sorted(answers.get() for _ in children)
    for child in children:
        child.join()
    return got, [child.exitcode for child in children]


def forks(status):
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def waits_for_all_its_children():
    """The usual loop of a program that forks: until there are no more."""
    for status in (3, 4):
        if os.fork() == 0:
            os._exit(status)
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            ended.append(os.waitstatus_to_exitcode(os.wait()[1]))
    return sorted(ended)


def runs_programs():
    sleeping = subprocess.Popen(['sleep', '120'])
    sleeping.terminate()
    said = subprocess.run(['cat'], input='hello', stdout=subprocess.PIPE, text=True, check=True).stdout
    with subprocess.Popen(['sh', '-c', 'kill -TERM $$; sleep 60']) as itself:
        itself.wait()
    return said, sleeping.wait(30), itself.returncode, os.system('exit 3') >> 8


def starts_threads():
    got = []
    threads = [threading.Thread(target=got.append, args=(n,)) for n in range(4)]
    forgotten = threading.Thread(target=time.sleep, args=(120,), daemon=True)
    failing = threading.Thread(target=fail, args=(ValueError('in a thread'),))
    for thread in threads + [forgotten, failing]:
        thread.start()
    for thread in threads + [failing]:
        thread.join()
    return sorted(got)


def where():
    return (threading.current_thread() is threading.main_thread(), multiprocessing.active_children(),
            multiprocessing.get_start_method(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)


def prints(count):
    for _ in range(count):
        print('x' * 999)
    print('é\ud800'.encode('utf-8', 'replace'), file=sys.stderr, flush=True)
    return count


def reads_all():
    return sys.stdin.read()


def changes_its_process():
    """As scripts do, and as they found it."""
    folder, limit = os.getcwd(), sys.getrecursionlimit()
    os.chdir('/')
    sys.setrecursionlimit(limit + 5000)
    os.environ['RIOS_AWSBATCH_TEST'] = 'x'
    with contextlib.redirect_stdout(sys.stderr):
        found = os.getcwd(), os.environ.pop('RIOS_AWSBATCH_TEST')
    sys.setrecursionlimit(limit)
    os.chdir(folder)
    return found


SHARED.update({
    'time_outs_in_the_function': lambda e: [
        e.submit(with_time_out, limit, time.sleep, seconds) for limit, seconds in [(0.1, 60), (60, 0)] * 4],
    'function_that_interrupts_itself': lambda e: [e.submit(interrupts_itself) for _ in range(3)],
    'function_that_raises_on_ctrl_c': lambda e: [
        e.submit(signal.raise_signal, signal.SIGINT), e.submit(whole, 1)],
    'asyncio_in_the_function': lambda e: [e.submit(uses_asyncio) for _ in range(3)],
    'function_that_terminates_its_child': lambda e: [e.submit(terminates_a_child, 'fork') for _ in range(3)],
    'function_with_a_pool': lambda e: [e.submit(uses_a_pool, n) for n in (3, 9, 6)],
    'function_with_executors': lambda e: [e.submit(uses_executors) for _ in range(2)],
    'function_with_a_queue': lambda e: [e.submit(uses_a_queue) for _ in range(2)],
    'function_that_forks': lambda e: [e.submit(forks, n) for n in (0, 7, 9)],
    'function_that_waits_for_all_its_children': lambda e: [
        e.submit(waits_for_all_its_children) for _ in range(3)],
    'function_that_runs_programs': lambda e: [e.submit(runs_programs) for _ in range(2)],
    'function_that_starts_threads': lambda e: [e.submit(starts_threads) for _ in range(3)],
    'function_runs_in_the_main_thread': lambda e: [e.submit(where) for _ in range(3)],
    'function_that_prints_much': lambda e: [e.submit(prints, 300), e.submit(whole, 1)],
    'function_that_asks_for_input': lambda e: [e.submit(input), e.submit(reads_all), e.submit(whole, 1)],
    'function_that_changes_its_process': lambda e: [e.submit(changes_its_process) for _ in range(3)],
})
SHARED.update({'function_that_sends_itself_' + name: functools.partial(
    lambda number, e: [e.submit(signals_itself, number) for _ in range(3)], getattr(signal, name))
    for name in ('SIGUSR1', 'SIGUSR2', 'SIGTERM', 'SIGHUP', 'SIGINT', 'SIGCHLD')})


# ---------------------------------------------------------------------------------------------
# Habits: map, as_completed, wait, callbacks, cancelling
# ---------------------------------------------------------------------------------------------

def sleeps(seconds, *args):
    time.sleep(seconds)
    return seconds


def failing_iterator(good):
    yield from range(good)
    raise LookupError('no more')


SHARED.update({
    'map_keeps_the_order': lambda e: list(e.map(sleeps, [0.5, 0.3, 0.1, 0.0, 0.2])),
    'map_over_unequal_iterables': lambda e: list(e.map(pow, [2, 3, 4, 5], itertools.count(), (7, 8, 9))),
    'map_over_nothing': lambda e: [
        list(e.map(square, [])), list(e.map(square)), list(e.map(square, [], [1]))],
    'map_over_generators_sets_and_texts': lambda e: [
        list(e.map(square, (x for x in range(4)))), list(e.map(ord, 'abc')),
        sorted(e.map(square, {1, 2, 3}))],
    'map_of_a_map': lambda e: list(e.map(square, e.map(square, range(20)))),
    'maps_at_the_same_time': lambda e: list(zip(*[e.map(pow, range(20), [n] * 20) for n in (1, 2, 3)])),
    'map_with_chunks': lambda e: list(e.map(square, range(20), chunksize=7)),
    'map_with_chunks_of_nothing': lambda e: e.map(square, range(3), chunksize=0),
    'map_over_what_is_no_iterable': lambda e: e.map(square, 5),
    'map_over_an_iterator_that_raises': lambda e: e.map(square, failing_iterator(3)),
    'map_that_is_in_time': lambda e: list(e.map(square, range(5), timeout=PATIENT)),
    'map_that_takes_too_long': lambda e: until_it_raises(e.map(sleeps, [3, 0], timeout=0.3)),
    'map_of_something_that_cannot_be_called': lambda e: until_it_raises(e.map(None, [1])),
    'many_calls': lambda e: list(e.map(square, range(300))) == [x * x for x in range(300)],
})


@case
def map_reads_its_iterables_at_once(executor):
    source = iter(range(6))
    results = executor.map(square, source)
    return list(source), list(results)


@case
def map_that_is_left_early(executor):
    first = []
    for result in executor.map(sleeps, [0.0] + [0.05] * 60):
        first.append(result)
        break
    results = executor.map(square, range(30))
    second = next(results), next(results)
    results.close()
    with pytest.raises(StopIteration):
        next(results)
    return first, second, executor.submit(square, 3).result(PATIENT)


@case
def map_that_is_never_asked(executor):
    executor.map(square, range(5))
    return executor.submit(square, 3).result(PATIENT)


@case
def map_in_a_cycle_of_references(executor):
    for _ in range(5):
        cycle = [executor.map(square, range(5))]
        cycle.append(cycle)
        next(cycle[0])
        del cycle
        gc.collect()
    return list(executor.map(square, range(5)))


@case
def as_completed_gives_each_once(executor):
    futures = [executor.submit(sleeps, seconds) for seconds in (0.5, 0.0, 0.2)]
    futures.append(executor.submit(fail, KeyError(1)))
    done = list(concurrent.futures.as_completed(futures + futures[:2], timeout=PATIENT))
    assert len(done) == 4 and set(done) == set(futures)
    return [len(list(concurrent.futures.as_completed(some))) for some in ([], futures)]


@case
def as_completed_in_time(executor):
    slow = executor.submit(sleeps, 3)
    with pytest.raises(TimeoutError) as raised:
        list(concurrent.futures.as_completed([slow], timeout=0.2))
    return raised.value, slow


@case
def waiting_for_some_or_for_all(executor):
    slow, quick = executor.submit(sleeps, 1), executor.submit(square, 3)
    not_yet = concurrent.futures.wait([slow], 0.01)
    first = concurrent.futures.wait([slow, quick], PATIENT, concurrent.futures.FIRST_COMPLETED)
    bad = executor.submit(fail, ValueError('bad'))
    failed = concurrent.futures.wait([slow, bad], PATIENT, concurrent.futures.FIRST_EXCEPTION)
    every = concurrent.futures.wait([slow, quick, bad], PATIENT)
    return (len(not_yet.done), bool(first.done), all(each.done() for each in first.done), bad in failed.done,
            len(every.done), len(every.not_done))


@case
def result_that_is_late_and_comes(executor):
    future, got = executor.submit(sleeps, 3), []
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError) as raised:
            ask(0.05)
        got.append(raised.value)
    return got, future.done(), outcome(future), future.done(), future.running(), future.cancelled()


@case
def callbacks_are_called_once_in_order(executor):
    got, future = [], executor.submit(sleeps, 0.5)
    for n in range(3):
        future.add_done_callback(lambda done, n=n: got.append((n, done is future, done.result())))
    wait_until(lambda: len(got) == 3, PATIENT)
    future.add_done_callback(lambda done: got.append('at once'))
    return got


@case
def callback_that_raises(executor):
    got, future = [], executor.submit(sleeps, 0.5)
    future.add_done_callback(lambda done: 1 / 0)
    future.add_done_callback(lambda done: got.append(done.result()))
    wait_until(lambda: got, PATIENT)
    future.add_done_callback(lambda done: 1 / 0)
    return got, executor.submit(square, 3)


@case
def callback_that_submits_waits_and_cancels(executor):
    got, other = [], executor.submit(sleeps, 0.1)

    def go_on(done):
        got.append(done.exception() and done.exception().args)
        got.append(executor.submit(square, 5))
        done.cancel()
    executor.submit(sleeps, 0.2).add_done_callback(go_on)
    executor.submit(fail, ValueError('bad')).add_done_callback(go_on)
    wait_until(lambda: len(got) == 4, PATIENT)
    return sorted(map(repr, map(told, got))), other


@case
def callbacks_that_take_their_time(executor):
    futures, got = [executor.submit(square, x) for x in range(6)], []
    for future in futures:
        future.add_done_callback(lambda done: (time.sleep(0.1), got.append(done.result())))
    wait_until(lambda: len(got) == 6, PATIENT)
    return sorted(got)


@case
def cancelled_calls(executor):
    futures = [executor.submit(sleeps, 0.1) for _ in range(40)]
    called = []
    futures[-1].add_done_callback(lambda done: called.append(done.cancelled()))
    asked = [futures[-1].cancel(), futures[-1].cancel(), futures[-1].cancelled(), futures[-1].done(), called]
    with pytest.raises(concurrent.futures.CancelledError):
        futures[-1].result(0)
    done = concurrent.futures.wait(futures, PATIENT)
    assert len(list(concurrent.futures.as_completed(futures, PATIENT))) == 40
    return asked, len(done.not_done), [future.cancel() for future in futures[:3]], futures


@case
def most_calls_are_cancelled(executor):
    futures = [executor.submit(sleeps, 0.2) for _ in range(60)]
    for future in reversed(futures[20:]):
        assert future.cancel()
    return futures, executor.submit(square, 3)


@case
def many_threads_submit(executor):
    def work(n):
        failed = executor.submit(fail_for, {n}, n)
        return list(executor.map(pow, [n] * 15, range(15))), failed.exception(PATIENT)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(work, range(8)))


@case
def asyncio_with_the_executor(executor):
    async def work():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, square, x) for x in range(5)]
        calls.append(loop.run_in_executor(executor, fail, ValueError('bad')))
        slow = [loop.run_in_executor(executor, sleeps, 0.3) for _ in range(20)]
        slow[-1].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        return results, await asyncio.gather(*slow, return_exceptions=True)
    return asyncio.run(work())


@case
def results_are_let_go(executor):
    future = executor.submit(whole, Scale(3))
    future.result(PATIENT)
    kept = weakref.ref(future.result())
    del future
    for _ in range(100):
        gc.collect()
        if kept() is None:
            break
        time.sleep(0.1)
    return kept()


@case
def arguments_and_functions_are_let_go(executor):
    argument, function = Scale(3), Scale(4)
    seen = [weakref.ref(argument), weakref.ref(function)]
    executor.submit(whole, argument).result(PATIENT)
    executor.submit(function, 3).result(PATIENT)
    del argument, function
    for _ in range(100):
        gc.collect()
        if not any(ref() for ref in seen):
            break
        time.sleep(0.1)
    return [ref() for ref in seen]


# ---------------------------------------------------------------------------------------------
# Beginning and end: each makes its own executor
# ---------------------------------------------------------------------------------------------

SETTING = None          # what an initializer is for: it sets a global, functions use it


def set_up(value):
    global SETTING, MODEL
    SETTING = MODEL = value


def settings():
    return SETTING, MODEL   # noqa: F821  # as in many scripts, there is no MODEL but in the workers


@own_case
def nothing_is_submitted(new):
    with new() as executor:
        return isinstance(executor, concurrent.futures.Executor)


@own_case
def no_call_after_the_end(new):
    with new() as executor:
        future = executor.submit(square, 3)
        with executor as same:
            assert same is executor
        assert future.done()
        got = [attempt(lambda: executor.submit(square, 3)), attempt(lambda: executor.map(square, [3]))]
        with pytest.raises(RuntimeError), executor:
            executor.submit(square, 3)
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)
    return got, future, attempt(lambda: executor.submit(square, 3))


def attempt(function):
    try:
        return function()
    except Exception as error:
        return error


@own_case
def end_waits_for_all_calls_and_their_callbacks(new):
    got = []
    with new() as executor:
        for x in range(6):
            executor.submit(square, x, 0.2).add_done_callback(lambda done: got.append(done.result()))
    return sorted(got)


@own_case
def end_without_waiting_finishes_all_calls(new):
    executor = new()
    futures = [executor.submit(square, x, 0.2) for x in range(6)]
    executor.shutdown(wait=False)
    return attempt(lambda: executor.submit(square, 3)), futures


@own_case
def end_that_cancels_leaves_no_future_open(new):
    executor = new()
    futures = [executor.submit(square, x, 0.3) for x in range(40)]
    executor.shutdown(cancel_futures=True)
    return [future.done() for future in futures], futures[-1]


@own_case
def end_in_a_callback(new):
    executor, ended = new(), threading.Event()
    futures = [executor.submit(square, x, 0.1) for x in range(4)]
    futures[0].add_done_callback(lambda done: (executor.shutdown(wait=False), ended.set()))
    assert ended.wait(PATIENT)
    return futures, attempt(lambda: executor.submit(square, 3))


@own_case
def ends_in_many_threads(new):
    executor = new()
    future = executor.submit(square, 3, 0.5)
    threads = [threading.Thread(target=executor.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    return future.done(), [thread.is_alive() for thread in threads]


@own_case
def exception_in_the_with_statement(new):
    for error in (LookupError('mine'), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as raised, new() as executor:
            future = executor.submit(square, 3)
            raise error
        assert raised.value is error and future.done()
    return attempt(lambda: executor.submit(square, 3))


@own_case
def initializer_sets_what_functions_use(new):
    with new(2, initializer=set_up, initargs=(5,)) as executor:
        return [executor.submit(settings) for _ in range(8)]


@own_case
def initializer_that_fails_breaks_the_executor(new):
    with new(initializer=fail, initargs=(ValueError('no model'),)) as executor:
        error = executor.submit(square, 3).exception(PATIENT)
        again = attempt(lambda: executor.submit(square, 3))
    return [isinstance(each, concurrent.futures.BrokenExecutor) for each in (error, again)]


@own_case
def initializer_must_be_callable(new):
    return attempt(lambda: new(initializer=5))


@own_case
def number_of_workers_must_be_positive(new):
    return [type(attempt(lambda: new(max_workers=count))) for count in (0, -1)]


@own_case
def executor_that_is_dropped_is_collected(new):
    executor = new()
    future = executor.submit(square, 3)
    future.result(PATIENT)
    ref = weakref.ref(executor)
    del executor
    for _ in range(100):
        gc.collect()
        if ref() is None:
            break
        time.sleep(0.1)
    return ref(), future


@own_case
def executor_that_is_dropped_finishes_its_calls(new):
    return [new().submit(square, 3, 0.2), list(new().map(square, range(4)))]


@own_case
def executor_of_a_thread(new):
    got = []

    def work():
        with new() as executor:
            got.extend(executor.map(square, range(5)))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENT)
    return got


@pytest.mark.parametrize('name', SHARED)
def test_gives_what_a_process_pool_gives(name, executor, pool):
    assert_same(SHARED[name], executor, pool)


@pytest.mark.parametrize('name', OWN)
def test_begins_and_ends_as_a_process_pool(name):
    runs = []

    def new(max_workers=1, **options):
        executor = AWSBatchExecutor(max_workers, **options)
        runs.append(executor.run)
        return executor
    ours = outcome_of(OWN[name], new)
    assert ours == outcome_of(OWN[name], lambda max_workers=1, **options: ProcessPoolExecutor(
        max_workers, FORK, **options))
    for run in runs:
        wait_until(lambda: not left_of(run))


# ---------------------------------------------------------------------------------------------
# Whole scripts, as they are started by a user
# ---------------------------------------------------------------------------------------------

SCRIPTS = {
    'child_of_the_script_that_ends': '''
        with Executor(2) as executor:
            print(executor.submit(square, 3).result(), flush=True)
            for ending in (sys.exit, os._exit, lambda status: None):
                pid = os.fork()
                if pid == 0:
                    ending(0)
                    break
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            else:
                print(list(executor.map(square, range(10))), flush=True)
        ''',
    'children_of_the_script_by_multiprocessing': '''
        import multiprocessing
        context = multiprocessing.get_context('fork')
        with Executor(2) as executor:
            futures = [executor.submit(square, x) for x in range(10)]
            with context.Pool(2) as pool:
                print(pool.map(square, range(5)), flush=True)
            children = [context.Process(target=time.sleep, args=(n,)) for n in (0, 100)]
            for child in children:
                child.start()
            children[1].terminate()
            for child in children:
                child.join()
                print(child.exitcode, flush=True)
            print([future.result() for future in futures], flush=True)
        ''',
    'executor_made_in_a_thread': '''
        import threading

        def work():
            executor = Executor(1)
            made.append(executor)
            print(list(executor.map(square, range(10))), flush=True)
        made = []
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(list(made[0].map(square, range(10))), flush=True)
        ''',
    'script_that_just_ends': '''
        executor = Executor(1)
        for x in range(8):
            future = executor.submit(square, x)
            future.add_done_callback(lambda done: print(end='.'[done.result() < 0:]))
        ''',
    'script_that_fails': '''
        executor = Executor(1)
        print(executor.submit(square, 3).result(), flush=True)
        raise LookupError('mine')
        ''',
    'script_that_exits': '''
        with Executor(1) as executor:
            print(list(executor.map(square, range(4))), flush=True)
            sys.exit(3)
        ''',
    'script_that_fails_because_its_function_does': '''
        def fail(x):
            raise LookupError('tile {}'.format(x))
        with Executor(1) as executor:
            print(list(executor.map(fail, range(4))), flush=True)
        ''',
}


@pytest.mark.parametrize('name', SCRIPTS)
def test_script_does_what_it_does_with_a_process_pool(name, tmp_path):
    ends = []
    for executor in ('rios_awsbatch import AWSBatchExecutor',
                     'concurrent.futures import ProcessPoolExecutor'):
        text = 'from {} as Executor\ndef square(x): return x * x\n'.format(executor)
        process = main_script(tmp_path, text + textwrap.dedent(SCRIPTS[name]))
        status, out, err = output_of(process, PATIENT)
        ends.append((status, out, err.splitlines()[-1:] if status else []))
    assert ends[0] == ends[1], err


# ---------------------------------------------------------------------------------------------
# Where we differ, and why
# ---------------------------------------------------------------------------------------------

# Functions are pickled by cloudpickle: those of a user's script are in __main__, which no worker has.
@pytest.mark.parametrize('function', [lambda x: x + 1, functools.partial(lambda a, b: a + b, 1)])
def test_lambdas_travel(function, executor, pool):
    assert outcome(pool.submit(function, 1)) == ('raised', 'cannot be pickled')
    assert executor.submit(function, 1).result(PATIENT) == 2


class Needs(Exception):
    """The usual mistake: it can be pickled, and not be unpickled."""
    def __init__(self, one, two):
        super().__init__('both {} {}'.format(one, two))


class Trap:
    """Raises when it is unpickled."""
    def __reduce__(self):
        return fail, (ValueError('trapped'),)


class ExitTrap:
    """Exits when it is unpickled."""
    def __reduce__(self):
        return sys.exit, ('trapped',)


def fails_as(kind):
    raise {'lock': lambda: ValueError(threading.Lock()), 'mute lock': lambda: Mute(threading.Lock()),
           'needs': lambda: Needs(1, 2), 'returned': lambda: Returned('odd'),
           'falls': lambda: ValueError(Trap()),
           'exits': lambda: ValueError(ExitTrap())}[kind]()


# In a process pool, the first breaks it, and the second is no exception when it arrives.
@pytest.mark.parametrize('kind, args', [('needs', ('both 1 2',)), ('returned', ('odd',))])
def test_exception_that_pickle_would_make_otherwise_arrives_as_itself(kind, args, executor):
    error = executor.submit(fails_as, kind).exception(PATIENT)
    assert type(error) is {'needs': Needs, 'returned': Returned}[kind] and error.args == args


# A process pool says only that a lock cannot be pickled; by the others it is broken, and all calls are lost.
@pytest.mark.parametrize('kind, said', [
    ('lock', 'ValueError.*lock'), ('mute lock', 'Mute'), ('falls', 'ValueError'), ('exits', 'ValueError')])
def test_exception_that_cannot_travel_is_told_in_words_and_alone(kind, said, executor):
    futures = [executor.submit(square, 3), executor.submit(fails_as, kind), executor.submit(square, 4)]
    error = futures[1].exception(PATIENT)
    assert isinstance(error, AWSBatchException) and not isinstance(error, concurrent.futures.BrokenExecutor)
    assert re.search(said, str(error)) and 'in fails_as' in str(error.__cause__)
    assert [futures[0].result(PATIENT), futures[2].result(PATIENT)] == [9, 16]


# A process pool makes it writable. Where all is computed in the script itself, and here, it stays as it is.
def test_read_only_array_stays_read_only(executor):
    futures = [executor.submit(in_place, read_only(numpy.zeros(n))) for n in (3, 100_000)]
    assert ['read-only' in str(future.exception(PATIENT)) for future in futures] == [True, True]


# A process pool refuses it, as its threads have ended by then.
def test_call_of_a_function_that_runs_at_exit_is_computed(tmp_path):
    status, out, err = output_of(main_script(tmp_path, '''
        import atexit

        @atexit.register
        def run_last():
            print(executor.submit(pow, 3, 2).result(), flush=True)
        executor = rios_awsbatch.AWSBatchExecutor(1)
        '''))
    assert (status, out) == (0, '9\n'), err


# As before: this breaks a process pool.
@pytest.mark.parametrize('function, args', [
    (whole, (Trap(),)), (Trap, ()), (functools.partial(whole, Trap()), ()),
    (whole, (ExitTrap(),)), (ExitTrap, ()), (functools.partial(whole, ExitTrap()), ())])
def test_what_cannot_be_unpickled_fails_alone(function, args, executor):
    futures = [executor.submit(square, 3), executor.submit(function, *args), executor.submit(square, 4)]
    error = futures[1].exception(PATIENT)
    assert 'trapped' in str(error) and not isinstance(error, concurrent.futures.BrokenExecutor)
    assert [futures[0].result(PATIENT), futures[2].result(PATIENT)] == [9, 16]


# The user of a process pool knows its computer; ours has to be told what to do about one of AWS.
@pytest.mark.parametrize('error, said', [
    (ModuleNotFoundError("No module named 'nowhere'", name='nowhere'), 'nowhere.*PIP_PACKAGES'),
    (AttributeError("Can't get attribute 'Model' on <module '__main__' from 'x.py'>"), 'Model.*name it in the function'),
    (MemoryError(), 'not enough memory.*in the script.*--mem')])
def test_what_a_worker_lacks_is_told_with_what_to_do(error, said, executor):
    found = executor.submit(fail, error).exception(PATIENT)
    assert isinstance(found, AWSBatchException) and re.search(said, str(found))


# A process pool computes all calls first. Here that would cost hours of many computers for nothing.
def test_exception_in_the_with_statement_cancels_what_is_outstanding():
    with pytest.raises(LookupError), AWSBatchExecutor(1) as executor:
        futures = [executor.submit(sleeps, 60) for _ in range(100)]
        raise LookupError('mine')
    assert all(future.cancelled() for future in futures)
    assert_nothing_left(executor.run)


# The main script does not know when a call begins: that would be one more message for each.
def test_call_that_runs_can_be_cancelled(executor, shared):
    def wait():
        (shared / 'begun').touch()
        while not (shared / 'go').exists():
            time.sleep(0.05)
    future = executor.submit(wait)
    wait_until((shared / 'begun').exists)
    assert future.cancel() and future.cancelled() and not future.running()
    (shared / 'go').touch()


# A function is stored once for a run, apart from its arguments, so the two have nothing in common on the way.
def test_function_and_its_arguments_travel_apart(executor, pool):
    thing = Gain()
    same = functools.partial(are_one, thing)
    assert pool.submit(same, thing).result(PATIENT)
    assert not executor.submit(same, thing).result(PATIENT)
