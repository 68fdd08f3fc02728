#!/usr/bin/env python3
"""
After a run: should I take more workers, or bigger blocks?

    RIOS_AWSBATCH_REPORT=FOLDER python3 my_script.py
    scripts/timeline.py FOLDER

The first line has the run write FOLDER/RUN.jsonl, a line for each thing that happens. The second reads the
newest of them (or the one it is given), prints a summary, and draws FOLDER/RUN.png. A run that was killed, or
that still goes on, has its picture too.

The picture has a lane for each worker, and one for the main script on top. Where a lane is blue, a worker
computes; everything else is time that was paid for and lost, and the bar at the bottom says to what. A worker
fetches a block and sends a result while it computes another one, so these show only where it had to wait for
them. The main script is busy with a result from when map() gives it one until it asks for the next. What it
does after the last one, such as GDAL's writing of what it has in its cache, is in no report.
"""
import argparse
import collections
import json
import math
import pathlib
import statistics
import sys
import textwrap
import time

# US dollars: list prices of us-east-1 in mid-2026, without the free tier, from aws.amazon.com/sqs/pricing,
# /s3/pricing and /ec2/pricing/on-demand. Other regions take up to a third more.
SQS_REQUEST = 0.40e-6           # standard queue
SQS_CHUNK = 65536               # ... and each so many bytes of a request's messages count as one
S3_PUT, S3_GET = 5e-6, 0.4e-6   # LIST is a PUT here, HEAD is a GET, DELETE is free
VCPU_HOUR = 0.05                # on demand, Linux: 0.048 for m5, 0.041 for m7g (Graviton). Spot takes a third
# What a GPU adds to that of its vCPUs, by family (August 2026): a g4dn.xlarge, with 4 vCPUs and one GPU, is
# $0.526, a g5.xlarge $1.006, a g6.xlarge $0.8048, a g6e.xlarge $1.861. For larger sizes it is right within a
# tenth, and up to a quarter too little for those of g6e.
GPU_HOUR = {'g4dn': 0.33, 'g5': 0.81, 'g6': 0.60, 'g6e': 1.66}
INTERNET_GB = 0.09              # results that leave AWS, if the main script runs elsewhere
S3_PRICES = {'PutObject': S3_PUT, 'ListObjectsV2': S3_PUT, 'GetObject': S3_GET, 'HeadObject': S3_GET}

GOOD = 0.75             # workers that compute for such a share of the time are well used
BUSY = 0.5              # a main script that is busy for such a share of it could not feed twice as many
SPARE_OVERHEAD = 0.1    # bigger blocks are to bring the overhead down to this share of the computing
BLOCKS_PER_WORKER = 4   # fewer cannot be shared out evenly

AT_MAIN = ('time', 'given', 'asked', 'queued', 'sent', 'arrived', 'collected')
AT_WORKER = ('received', 'downloaded', 'started', 'computed', 'uploaded')

# What the time of the workers goes to: colour, and name in the picture and the summary.
PHASES = {
    'compute': ('#2f6db3', 'computing'),
    'initialize': ('#74c4c4', 'initializer'),
    'download': ('#f0a030', 'downloading arguments'),
    'upload': ('#8e5bb5', 'uploading results'),
    'queue': ('#e8d44d', 'handing over blocks'),
    'unsent': ('#b5651d', 'main script still sends'),
    'writing': ('#c2588f', 'main script busy with a result'),
    'none': ('#9a9a9a', 'no block to compute'),
    'end': ('#cfcfcf', 'waiting for the last blocks'),
    'lost': ('#d43d3d', 'lost with workers that ended'),
    'unwanted': ('#e6a0a0', 'computed in vain'),
    'gap': ('#fae3e3', 'until another replaced it'),
    'away': ('#f3f3f3', 'worker not up yet')}
WAIT, COLLECT = '#dedede', '#3a9e7e'

# What to change, by what the workers' time was lost to.
ADVICE = {
    'writing':
        'The main script was busy with results for {writing:.0%} of the time, which is writing as a rule: '
        'more workers will not help. NUM_THREADS=ALL_CPUS among the creation options does, a larger '
        'GDAL_CACHEMAX, larger tiles, no compression, or workers that write themselves '
        '(examples/mosaic_s3.py).',
    'short':
        'Blocks are short against the overhead (on average {mean} of computing, {overhead} to hand one '
        'over): make them about {bigger} times bigger.',
    'moving':
        'Workers spent {moving:.0%} of the time moving data ({size} a block): bigger blocks will not help. '
        'Let workers read their files themselves, and return smaller data types.',
    'unsent':
        'Workers waited {unsent:.0%} of the time for the main script to send them blocks: more workers will '
        'not help. Let workers read their files themselves, or run the main script on AWS '
        '("scripts/submit.sh").',
    'none':
        'Workers had no block to compute for {none:.0%} of the time: the main script gave out too few at a '
        'time. Raise buffersize, or make its own work between blocks quicker; more workers will not help.',
    'collecting':
        'Workers had no block to compute for {none:.0%} of the time, and the main script was taking in '
        'results for {collecting:.0%} of it. More workers will not help; run it on AWS '
        '("scripts/submit.sh"), or return less.',
    'end':
        'Workers waited {end:.0%} of the time for the last blocks (the longest took {longest}, the median '
        '{median}): submit slow blocks first, take smaller blocks, or a number of workers that shares them '
        'evenly.',
    'initialize':
        'Workers were in their initializer for {initialize:.0%} of the time ({first} each): take fewer, or '
        'make it quicker, for instance with what it loads in the image.',
    'away':
        'Workers were not up for {away:.0%} of the time, which is short for so many: take fewer. '
        '"scripts/status.sh" says why one does not come up.',
    'lost':
        '{gone:.0%} of the time was lost with workers that ended before their time, and until others had '
        'replaced them. "scripts/status.sh" and the warnings of the run say why.'}


def gpu_hour(instances):
    """
    What a GPU costs for an hour, in US dollars: of these instance types or families (str, with commas) the
    dearest, as nobody knows which Batch has picked; None where there is one whose price we do not know.
    """
    families = {name.partition('.')[0] for name in instances.split(',')}
    return max(map(GPU_HOUR.get, families)) if families <= GPU_HOUR.keys() else None


class ReportError(Exception):
    """There is nothing to draw; the message says why."""


def read(path):
    """
    The records of a report by their kind: {'run': [{...}], 'block': [{...}, ...], ...}, as they were written.

    Raises:
        ReportError: this is no report.
    """
    records = collections.defaultdict(list)
    try:
        # Every line has its end, but for one that was being written when the script was killed.
        for line in path.read_bytes().split(b'\n')[:-1]:
            record = json.loads(line)
            records[record['is']].append(record)
        if not records['run']:
            raise ValueError('it has no run')
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ReportError('{} was not written by rios_awsbatch: {!r}.'.format(path, error)) from None
    return records


class Run:
    """
    A run as its report tells it. All times are seconds since it began, by the main script's clock.

    Args:
        path (pathlib.Path): the report.
        vcpu_hour, per_gpu (float): the price of a vCPU, and of a GPU, for an hour, in US dollars. Default of
            the latter: what gpu_hour() says of the stack's instance types.

    Raises:
        ReportError: this is no report.
    """
    def __init__(self, path, vcpu_hour=VCPU_HOUR, per_gpu=None):
        records = read(path)
        self.run, self.vcpu_hour = records['run'][0], vcpu_hour
        self.gpu_hour = gpu_hour(self.run.get('instances') or '') if per_gpu is None else per_gpu
        self.end = records['end'][0] if records['end'] else None        # the script was killed, or still runs
        self.blocks, self.taken, self.lost = records['block'], records['taken'], records['lost']
        self.told = [told['text'] for told in records['told']]
        # SQS may bring an answer twice.
        answered = {(block['id'], block['started']) for block in self.blocks}
        self.unwanted = [block for block in records['unwanted'] if block.get('started') and
                         (block['id'], block['started']) not in answered]
        self.ended = self._count_from_the_start(records)
        self.computed = [block for block in self.blocks if block['started'] is not None]
        self.retried = [block for block in self.blocks if block['tries'] > 1]
        self.failed = [block for block in self.blocks if block['error']]
        # The window in which workers could have computed.
        self.first_up = min((up['time'] for up in records['up']), default=self.ended)
        self.last = max((block.get('collected') or block.get('arrived') or block['computed']
                         for block in self.blocks), default=self.ended)
        self.seconds = max(self.last - self.first_up, 1e-6)
        self.stays = self._stays(records)
        self.lanes = self._lanes()
        self.pieces = [self._cut(lane) for lane in self.lanes]
        self.shares = self._shares()
        self.efficiency = self.shares['compute']
        # The main script may be busy for long after the last block was there.
        self.writing = self.busy(self.taken, 'given', 'asked') / max(
            [1] + [(taken['asked'] - self.first_up) / self.seconds for taken in self.taken])

    def _count_from_the_start(self, records):
        """
        Make all times seconds since the run began; when it ended, or the last that is known of it.

        The workers' clocks are AWS's and agree; that of the main script may be off. The answer that came
        quickest is taken to have taken no time, so that none arrives before it left.
        """
        behind = min((block['arrived'] - block['uploaded'] for block in self.blocks if block['uploaded']),
                     default=0)
        last = 0.0
        for record in (record for some in records.values() for record in some):
            for name in AT_MAIN + AT_WORKER:
                if record.get(name) is not None:
                    record[name] += (behind if name in AT_WORKER else 0) - self.run['began']
                    last = max(last, record[name])
        return self.end['time'] if self.end else last

    def _stays(self, records):
        """
        From when each worker came up to when it went, in order; AWS Batch may start the same one again.

        Returns:
            list: of dicts: 'worker' (str), 'up' and 'end' (seconds), 'lost' (bool), 'blocks' (in order).
        """
        stays = [{'worker': up['worker'], 'up': up['time'], 'end': self.ended, 'lost': False, 'blocks': []}
                 for up in sorted(records['up'], key=lambda up: up['time'])]
        of_worker = collections.defaultdict(list)
        for stay in stays:
            of_worker[stay['worker']].append(stay)

        def at(worker, moment):
            own = of_worker[worker]
            return ([stay for stay in own if stay['up'] <= moment] or own[:1])[-1:]

        for end in records['ended'] + records['lost']:
            for stay in at(end['worker'], end['time']):
                stay.update(end=end['time'], lost=end['is'] == 'lost')
        for block in sorted(self.computed + self.unwanted, key=lambda block: block['started']):
            for stay in at(block['worker'], block['computed']):
                stay['blocks'].append(block)
                stay['up'] = min(stay['up'], block['received'])     # before its first words had arrived
        return stays

    def _lanes(self):
        """A list of stays for each worker that was asked for: one that replaces another has its lane."""
        lanes = [[] for _ in range(self.run['workers'])]
        for stay in self.stays:
            lane = next((lane for lane in lanes if not lane or lane[-1]['end'] <= stay['up']), None)
            if lane is None:
                lane = []
                lanes.append(lane)
            lane.append(stay)
        # By number, 9 before 10; those for which none came up last.
        return sorted(lanes, key=lambda lane: (len(lane[0]['worker']), lane[0]['worker']) if lane else (99,))

    def _cut(self, lane):
        """A lane from 0 to the last block, cut into (begin, end, phase)."""
        pieces, now = [], 0.0

        def until(moment, phase):
            nonlocal now
            moment = min(moment, self.last)
            if moment > now:
                pieces.append((now, moment, phase))
                now = moment

        for stay in lane:
            until(stay['up'], 'away' if stay is lane[0] else 'gap')
            uploaded = now
            for block in stay['blocks']:
                until(min(uploaded, block['started']), 'upload')
                until(block['received'], 'wait')
                until(block['downloaded'], 'download')
                until(block['started'] - (block.get('initialized') or 0), 'wait')
                until(block['started'], 'initialize')
                until(block['computed'], 'compute' if block['is'] == 'block' else 'unwanted')
                uploaded = block['uploaded']
            until(uploaded, 'upload')
            until(stay['end'], 'lost' if stay['lost'] else 'wait')
        until(self.last, 'gap' if lane else 'away')
        return pieces

    def _shares(self):
        """What share of the workers' time went to each of the PHASES."""
        seconds = self._reasons()
        for begin, end, phase in (piece for pieces in self.pieces for piece in pieces):
            if phase != 'wait':
                seconds[phase] += max(0, end - max(begin, self.first_up))
        return {phase: seconds[phase] / len(self.lanes) / self.seconds for phase in PHASES}

    def _reasons(self):
        """Worker-seconds of waiting, by what they waited for: see how the blocks stood at the time."""
        spans = [(*piece[:2], 'waiting') for pieces in self.pieces for piece in pieces if piece[2] == 'wait']
        spans += [(taken['given'], taken['asked'], 'writing') for taken in self.taken]
        spans += [(block['queued'], block['sent'], 'unsent') for block in self.blocks]
        # A block of several tries was out of reach until it was received for the last time.
        spans += [(block['sent'], block['received'], 'lost' if block['tries'] > 1 else 'queue')
                  for block in self.blocks if block['received'] is not None]
        changes = [(begin, what, 1) for begin, _, what in spans] + [(end, what, -1) for _, end, what in spans]
        last_queued = max((block['queued'] for block in self.blocks), default=0)
        seconds, now, before = collections.Counter(), collections.Counter(), 0
        for moment, what, change in sorted(changes):
            reason = next((reason for reason in ('queue', 'unsent', 'lost', 'writing') if now[reason] > 0),
                          'none' if before < last_queued else 'end')
            seconds[reason] += now['waiting'] * (moment - before)
            now[what] += change
            before = moment
        return seconds

    # Figures ------------------------------------------------------------------------------------

    def overhead(self):
        """Seconds that a worker lost, on average, between a block and the next that was there for it."""
        lost = sum(self.shares[phase] for phase in ('download', 'upload', 'queue'))
        return lost * len(self.lanes) * self.seconds / max(1, len(self.computed))

    def compute_seconds(self):
        return [block['computed'] - block['started'] for block in self.computed] or [0.0]

    def initializing(self):
        """Seconds that a worker was in its initializer (median); 0 without one."""
        return statistics.median(
            [block['initialized'] for block in self.computed if block.get('initialized')] or [0.0])

    def percents(self):
        """What the workers' time went to, in whole percents that add up to 100 (dict by phase)."""
        whole = max(1e-9, sum(self.shares.values()))
        exact = {phase: 100 * share / whole for phase, share in self.shares.items()}
        percents = {phase: int(share) for phase, share in exact.items()}
        missing = 100 - sum(percents.values())
        for phase in sorted(exact, key=lambda phase: percents[phase] - exact[phase])[:missing]:
            percents[phase] += 1
        return percents

    def busy(self, records, first, last):
        """The share of the time in which the main script was between two times of any of these records."""
        return sum(end - begin for begin, end in united(records, first, last)) / self.seconds

    def vcpu_hours(self):
        """How long workers were up, and so cost money."""
        return self._hours() * float(self.run['vcpus'] or 1)

    def gpu_hours(self):
        return self._hours() * float(self.run.get('gpus') or 0)

    def _hours(self):
        return sum(stay['end'] - stay['up'] for stay in self.stays) / 3600

    def costs(self):
        """An estimate in US dollars, for 'compute', and for 'sqs' and 's3' if the report has its end."""
        costs = {'compute': self.vcpu_hours() * self.vcpu_hour + self.gpu_hours() * (self.gpu_hour or 0)}
        if self.end:
            requests = {name.rpartition('.')[2]: number for name, number in self.end['requests'].items()}
            # A large message is paid by its size when it is sent, and again when it is received.
            chunks = sum(2 * (size // SQS_CHUNK) for block in self.blocks
                         for size in (block['bytes_in'], block['bytes_out'])
                         if size and size <= self.run['inline_bytes'])
            costs['sqs'] = SQS_REQUEST * (chunks + sum(
                number for name, number in requests.items() if 'Message' in name or 'Queue' in name))
            costs['s3'] = sum(number * S3_PRICES.get(name, 0) for name, number in requests.items())
        return costs

    # Words --------------------------------------------------------------------------------------

    def headline(self):
        return '{:,} blocks, {} workers, {}: efficiency {:.0%}, about {} (estimate{})'.format(
            len(self.blocks), self.run['workers'], span(self.ended), self.efficiency,
            dollars(sum(self.costs().values())),
            ' without GPUs' if self.gpu_hours() and self.gpu_hour is None else '')

    def verdict(self):
        """One or two sentences: what to change."""
        if self.end and self.end['broken']:
            return 'The run broke off: ' + self.end['broken'].partition('. ')[0].rstrip('.') + '.'
        if not self.stays:
            text = 'No worker came up. "scripts/status.sh" shows why.'
        elif not self.computed:
            text = 'No block was computed by a worker.'
        elif self.efficiency >= GOOD and self.writing <= BUSY:
            text = self._well_used()
        else:
            text = self._advice()
        return text if self.end else 'The main script was killed, or still runs. ' + text

    def _well_used(self):
        blocks, workers = len(self.computed), self.run['workers']
        text = 'Workers computed for {:.0%} of the time: '.format(self.efficiency)
        if self.first_up > self.seconds:
            return text + 'but starting them took {}, and the work {}. More would save little.'.format(
                span(self.first_up), span(self.seconds))
        # No more than there are blocks for, and than the main script has time for.
        most = min(blocks // BLOCKS_PER_WORKER, int(workers / max(self.writing, 1e-6)))
        first, cost = self.initializing(), ''
        if first:               # with so many, each would be as long in its initializer as at its blocks
            most = min(most, int(sum(self.compute_seconds()) / first))
            cost = ' (each is {} in its initializer first)'.format(span(first))
        if most > workers:
            return text + 'more workers would help, up to about {:,} with blocks of this size{}.'.format(
                most, cost)
        return text + ('more workers would help, with smaller blocks: {} have only {:.1f} blocks each to '
                       'share.'.format(workers, blocks / workers))

    def _advice(self):
        shares, times, overhead = self.shares, self.compute_seconds(), self.overhead()
        mean = statistics.fmean(times)      # not the median: the first blocks of a worker are slow
        sizes = [block['bytes_in'] + block['bytes_out'] for block in self.computed]
        figures = dict(
            shares, moving=shares['download'] + shares['upload'],
            first=span(self.initializing()), gone=shares['lost'] + shares['unwanted'] + shares['gap'],
            writing=self.writing, collecting=self.busy(self.blocks, 'arrived', 'collected'),
            mean=span(mean), longest=span(max(times)), median=span(statistics.median(times)),
            overhead=span(overhead), size=size_of(statistics.fmean(sizes)),
            bigger=max(2, int(float('{:.1g}'.format(overhead / SPARE_OVERHEAD / max(mean, 1e-3))))))
        large = statistics.median(sizes) > self.run['inline_bytes']
        losses = {'writing': shares['writing'], 'unsent': shares['unsent'], 'none': shares['none'],
                  'end': shares['end'], 'away': shares['away'], 'lost': figures['gone'],
                  'initialize': shares['initialize'],
                  'short': shares['queue'] + (0 if large else figures['moving']),
                  'moving': figures['moving'] if large else 0}
        worst = 'writing' if figures['writing'] > BUSY else max(losses, key=losses.get)
        if worst == 'none' and figures['collecting'] > BUSY:
            worst = 'collecting'
        return ADVICE[worst].format(**figures)

    def summary(self):
        """Lines for the terminal."""
        run, costs = self.run, self.costs()
        ups = sorted(lane[0]['up'] for lane in self.lanes if lane)
        yield 'Run {} of {} (stack {}, {})'.format(
            run['run'], time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(run['began'])), run['stack'],
            run['region'])
        yield '  ' + self.headline()
        yield '  workers      {} of {} came up{}'.format(
            len(ups), run['workers'], ', the first after {}, the last after {}'.format(
                span(ups[0]), span(ups[-1])) if ups else '')
        if self.lost:
            yield '  lost         {}: {}'.format(
                count(len(self.lost), 'worker'), first_line(self.lost[0]['why']))
        if self.computed:
            times = self.compute_seconds()
            yield '  blocks       {:,} by workers: {} of computing (median; longest {}), {} overhead'.format(
                len(self.blocks), span(statistics.median(times)), span(max(times)), span(self.overhead()))
            yield '               {} in and {} out each (median)'.format(*(
                size_of(statistics.median(block[name] for block in self.computed))
                for name in ('bytes_in', 'bytes_out')))
        if self.end and self.end['submitted'] > len(self.blocks):
            yield '               {:,} cancelled or never answered'.format(
                self.end['submitted'] - len(self.blocks))
        if self.retried:
            yield '  retries      {} tried again, because a worker ended'.format(
                count(len(self.retried), 'block'))
        if self.failed:
            yield '  failures     {}, such as {}: {}'.format(
                count(len(self.failed), 'block'), self.failed[0]['label'],
                first_line(self.failed[0]['error']))
        for told in self.told:
            yield '  note         ' + told
        percents = self.percents()
        yield '  worker time  ' + ', '.join(
            '{}% {}'.format(percents[phase], name) for phase, (_, name) in PHASES.items() if percents[phase])
        if self.taken:
            yield ('  main script  busy with results for {:.0%} of the time; what it writes after the last '
                   'is in no report'.format(self.writing))
        yield '  cost         about {}: compute {} ({:.3g} vCPU-hours at ${:g}{}), {}'.format(
            dollars(sum(costs.values())), dollars(costs['compute']), self.vcpu_hours(), self.vcpu_hour,
            '' if not self.gpu_hours() else ', without GPUs' if self.gpu_hour is None else
            ', {:.3g} GPU-hours at ${:g}'.format(self.gpu_hours(), self.gpu_hour),
            'SQS {}, S3 {}'.format(dollars(costs['sqs']), dollars(costs['s3'])) if self.end else
            'and requests, which are counted at the end')
        leaving = sum(block['bytes_out'] or 0 for block in self.blocks) / 1e9 * INTERNET_GB
        if leaving >= 0.01:
            yield '               and {} for results, if the main script is not on AWS'.format(
                dollars(leaving))
        if self.ended - self.last > max(5, 0.1 * self.seconds):
            yield '  after that   workers stayed {} after the last block, until shutdown()'.format(
                span(self.ended - self.last))
        yield '\n' + self.verdict()


def united(records, first, last):
    """The times in which any record was between two of its times: a list of [begin, end]."""
    spans = []
    known = ((each[first], each[last]) for each in records)
    for begin, end in sorted(times for times in known if None not in times):
        if spans and begin <= spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([begin, end])
    return spans


def span(seconds):
    """Seconds in words."""
    if seconds < 0.9995:
        return '{:.0f} ms'.format(1000 * seconds)
    for size, unit, enough in ((1, 's', 100), (60, 'min', 6000)):
        if seconds < enough:
            return '{:.3g} {}'.format(seconds / size, unit)
    return '{:.3g} h'.format(seconds / 3600)


def dollars(amount):
    """An amount to two figures, as in $0.0012."""
    return '${:.{}f}'.format(amount, max(2, 1 - math.floor(math.log10(amount)))) if amount > 1e-9 else '$0'


def size_of(count):
    """A number of bytes in words."""
    for unit in ('bytes', 'kB', 'MB'):
        if count < 1000:
            return '{:.3g} {}'.format(count, unit)
        count /= 1000
    return '{:.3g} GB'.format(count)


def first_line(text):
    return text.partition('\n')[0]


def count(number, what):
    return '{:,} {}{}'.format(number, what, '' if number == 1 else 's')


# ---------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------

def draw(run, path):
    """Draw the lanes of a run, and below them what its workers' time went to."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    height = min(16, max(1.6, 0.3 * (len(run.lanes) + 2)))
    figure, (lanes, bar) = pyplot.subplots(
        2, 1, figsize=(13, height + 2.9), gridspec_kw={'height_ratios': [height, 0.55]}, layout='constrained')
    figure.suptitle('{}\n{}'.format(run.headline(), textwrap.fill(run.verdict(), 120)), fontsize=12)
    draw_lanes(lanes, run)
    draw_bar(bar, run)
    figure.savefig(path, dpi=110)


def draw_lanes(axes, run):
    from matplotlib.patches import Patch
    many = len(run.computed) > 150 * len(run.lanes)     # no room for the edges of blocks
    edges = {} if many else {'edgecolor': 'white', 'linewidth': 0.4}
    hatched = {'hatch': '////', 'edgecolor': '#dddddd', 'linewidth': 0}
    styles = {'compute': edges, 'away': hatched, 'gap': hatched}
    for row, pieces in enumerate(run.pieces):
        for phase in {phase for _, _, phase in pieces}:
            axes.broken_barh([(begin, end - begin) for begin, end, what in pieces if what == phase],
                             (row - 0.42, 0.84), facecolor=PHASES.get(phase, (WAIT,))[0],
                             **styles.get(phase, {}))
    handles = draw_main(axes, run) + draw_marks(axes, run)
    handles.append(Patch(color=WAIT, label='worker waits (below: for what)'))
    for moment in (run.first_up, run.last):
        axes.axvline(moment, color='black', linewidth=0.8, linestyle=':')
    rows = range(0, len(run.lanes), max(1, math.ceil(len(run.lanes) / 50)))
    axes.set_yticks([-1.3, *rows], ['main script', *(
        'worker ' + (', '.join(stay['worker'] for stay in run.lanes[row]) or '?') for row in rows)],
                    fontsize=9 if len(rows) <= 30 else 7)
    axes.set_ylim(len(run.lanes) - 0.4, -2)
    axes.set_xlim(0, run.ended)
    axes.set_xlabel('seconds since the run began')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    axes.legend(handles=handles, loc='lower right', bbox_to_anchor=(1, 1), ncols=len(handles), fontsize=9,
                frameon=False)


def draw_main(axes, run):
    """The main script's lane: what it works at and takes in; below, what it has still to send."""
    from matplotlib.patches import Patch
    axes.broken_barh([(0, run.ended)], (-1.75, 0.84), facecolor='#f7f7f7')
    handles = []
    for records, first, last, bottom, height, colour, label in (
            (run.taken, 'given', 'asked', -1.75, 0.6, PHASES['writing'][0], 'main script busy with a result'),
            (run.blocks, 'arrived', 'collected', -1.45, 0.3, COLLECT, 'takes in a result'),
            (run.blocks, 'queued', 'sent', -1.15, 0.24, PHASES['unsent'][0], 'has blocks to send')):
        bars = [(begin, end - begin) for begin, end in united(records, first, last)]
        if bars:
            axes.broken_barh(bars, (bottom, height), facecolor=colour, edgecolor=colour, linewidth=0.3)
            handles.append(Patch(color=colour, label=label))
    return handles


def draw_marks(axes, run):
    """What befell blocks and workers."""
    from matplotlib.lines import Line2D
    rows = {stay['worker']: row for row, lane in enumerate(run.lanes) for stay in lane}
    handles = []
    for label, marker, colour, records, when in (
            ('tried again', '<', '#f0a030', run.retried, 'started'),
            ('failed', 'X', '#d43d3d', run.failed, 'computed'),
            ('worker lost', 's', '#d43d3d', run.lost, 'time')):
        points = [(each[when], rows[each['worker']]) for each in records
                  if each[when] and each['worker'] in rows]
        if points:
            style = {'marker': marker, 'color': colour, 'markeredgecolor': 'black', 'markeredgewidth': 0.6,
                     'linestyle': '', 'label': label}
            axes.plot(*zip(*points), markersize=min(9, max(6, 300 / len(run.lanes))), zorder=5, **style)
            handles.append(Line2D([], [], **style))
    return handles


def draw_bar(axes, run):
    """What the workers' time went to, from the first worker up to the last block."""
    left = 0
    for phase, percent in run.percents().items():
        (colour, name), share = PHASES[phase], percent / 100
        if not percent:
            continue
        axes.barh(0, share, left=left, color=colour, label='{} {}%'.format(name, percent), linewidth=0.4,
                  edgecolor='#888888', hatch='////' if phase in ('away', 'gap') else None)
        if share > 0.04 and phase not in ('away', 'gap'):
            axes.text(left + share / 2, 0, '{}%'.format(percent), ha='center', va='center', fontsize=10,
                      color='white' if phase in ('compute', 'upload', 'unsent', 'lost') else 'black')
        left += share
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    axes.set_title('What the time of the workers went to, between the dotted lines', fontsize=10, loc='left')
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, 0), ncols=5, fontsize=9, frameon=False)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', metavar='FOLDER', type=pathlib.Path,
                        help='what RIOS_AWSBATCH_REPORT was; or a RUN.jsonl in it')
    parser.add_argument('--vcpu-hour', metavar='DOLLARS', type=float, default=VCPU_HOUR,
                        help='price of a vCPU for an hour (%(default)s, about that of on-demand instances)')
    parser.add_argument('--gpu-hour', metavar='DOLLARS', type=float,
                        help='what a GPU adds to it (as on demand, by the families of the stack)')
    given = parser.parse_args()
    try:
        path = given.report
        if path.is_dir():
            path = max(path.glob('*.jsonl'), key=lambda report: report.stat().st_mtime, default=None)
        if path is None or not path.exists():
            raise ReportError('There is no report in {}. A run writes one if RIOS_AWSBATCH_REPORT names the '
                              'folder.'.format(given.report))
        run = Run(path, given.vcpu_hour, given.gpu_hour)
        print('\n'.join(run.summary()), flush=True)
        draw(run, path.with_suffix('.png'))
        print('\n{}'.format(path.with_suffix('.png')))
    except ReportError as error:
        sys.exit('timeline.py: {}'.format(error))
    except ImportError as error:
        print('timeline.py: no picture without matplotlib ({}): pip install matplotlib'.format(error),
              file=sys.stderr)
    except OSError as error:
        sys.exit('timeline.py: {} cannot be written: {}'.format(error.filename, error.strerror))


if __name__ == '__main__':
    main()
