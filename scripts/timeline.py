#!/usr/bin/env python3
"""
After a run: should I take more workers, or bigger blocks?

    RIOS_AWSBATCH_REPORT=FOLDER python3 my_script.py
    scripts/timeline.py FOLDER

The first line has the run write FOLDER/run.json. The second draws FOLDER/timeline.png from it and prints a
summary. Instead of FOLDER it takes a FOLDER/run-ID.json, which is an earlier run that wrote there.

The picture has a lane for each worker, and one for the main script on top. Where a lane is blue, a worker
computes; everything else is time that was paid for and lost, and the bar at the bottom says to what. A worker
fetches a block and sends a result while it computes another one, so these show only where it had to wait for them.
"""
import argparse
import collections
import json
import math
import pathlib
import statistics
import sys

# US dollars: list prices of us-east-1 in mid-2026, without the free tier, from aws.amazon.com/sqs/pricing,
# /s3/pricing and /ec2/pricing/on-demand. Other regions take up to a third more.
SQS_REQUEST = 0.40e-6           # standard queue; each 64 KiB of a message counts as a request
S3_PUT, S3_GET = 5e-6, 0.4e-6   # LIST is a PUT here, HEAD is a GET, DELETE is free
VCPU_HOUR = 0.05                # on demand, Linux: 0.048 for m5 (x86), 0.041 for m7g (Graviton). Spot takes a third
INTERNET_GB = 0.09              # results that leave AWS, if the main script runs elsewhere
REQUEST_PRICES = {'sqs': SQS_REQUEST, 's3.PutObject': S3_PUT, 's3.ListObjectsV2': S3_PUT,
                  's3.GetObject': S3_GET, 's3.HeadObject': S3_GET}
CHUNK_BYTES = 65536 * 3 // 4    # 64 KiB of a message hold so much of a payload, in base64

GOOD = 0.75             # workers that compute for such a share of the time are well used
SPARE_OVERHEAD = 0.1    # bigger blocks are to bring the overhead down to this share of the computing
BLOCKS_PER_WORKER = 4   # fewer cannot be shared out evenly

# What the time of the workers goes to: colour, and name in the picture and the summary.
PHASES = {
    'compute': ('#2f6db3', 'computing'),
    'download': ('#f0a030', 'downloading arguments'),
    'upload': ('#8e5bb5', 'uploading results'),
    'queue': ('#e8d44d', 'handing over blocks'),
    'unsent': ('#b5651d', 'main script still sends'),
    'none': ('#9a9a9a', 'no block to compute'),
    'end': ('#cfcfcf', 'waiting for the last blocks'),
    'lost': ('#d43d3d', 'lost with workers that ended'),
    'unwanted': ('#e6a0a0', 'computed in vain'),
    'start': ('#f3f3f3', 'worker not up yet')}
COLLECT = '#3a9e7e'


class ReportError(Exception):
    """There is nothing to draw; the message says why."""


class Run:
    """
    What is in a run.json, and what follows from it.

    Args:
        path (pathlib.Path): the file.
        vcpu_hour (float): the price of a vCPU for an hour, in US dollars.

    Raises:
        ReportError: this is no run.json.
    """
    def __init__(self, path, vcpu_hour=VCPU_HOUR):
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
            self.run, self.starts, blocks = found['run'], found['workers'], found['blocks']
        except FileNotFoundError:
            raise ReportError('There is no {}. A run writes it at its end, if RIOS_AWSBATCH_REPORT names the '
                              'folder.'.format(path)) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReportError('{} was not written by rios_awsbatch: {!r}.'.format(path, error)) from None
        self.vcpu_hour = vcpu_hour
        self.main_blocks = [block for block in blocks if block['worker'] == 'main']
        self.blocks = [block for block in blocks if block['worker'] != 'main' and block['label'] is not None]
        answered = {(block['id'], block['started']) for block in self.blocks}     # SQS may bring an answer twice
        self.unwanted = [block for block in blocks if block['label'] is None and block['started'] is not None and
                         (block['id'], block['started']) not in answered]
        self.computed = [block for block in self.blocks if block['started'] is not None]
        self.retried = [block for block in self.blocks if block['tries'] > 1]
        self.failed = [block for block in self.blocks if block['error']]
        # The window in which workers could have computed.
        self.first_up = min((start['up'] for start in self.starts), default=self.run['ended'])
        self.last = max((block['collected'] for block in self.blocks + self.main_blocks), default=self.run['ended'])
        self.seconds = max(self.last - self.first_up, 1e-6)
        self.lanes = self._lanes()
        self.shares = self._shares()

    def _lanes(self):
        """By worker: its time from 0 to the last block, cut into (start, end, phase)."""
        starts, work = collections.defaultdict(list), collections.defaultdict(list)
        for start in sorted(self.starts, key=lambda start: start['up']):
            starts[start['worker']].append(start)
        for block in self.computed + self.unwanted:
            work[block['worker']].append(block)
        numbers = [str(number) for number in range(self.run['workers'])]
        return {worker: self._lane(starts[worker], sorted(work[worker], key=lambda block: block['started']))
                for worker in numbers}

    def _lane(self, starts, blocks):
        if not starts:
            return [(0, self.last, 'start')]
        # Started again without having said goodbye before.
        restarts = [start['up'] for start, before in zip(starts[1:], starts) if before['ended'] is None]
        up = min([starts[0]['up']] + [block['received'] for block in blocks[:1]])
        pieces, now, uploaded = [(0, up, 'start')], up, up
        for block in blocks + [None]:
            begin = self.last if block is None else block['started']
            for again in restarts:
                if now < again < (begin if block is None else block['computed']):
                    pieces.append((now, min(again, begin), 'lost'))
                    now = uploaded = min(again, begin)
            pieces.append((now, min(uploaded, begin), 'upload'))
            now = max(now, min(uploaded, begin))
            if block is not None:
                pieces.append((now, block['received'], 'wait'))
                now = max(now, block['received'])
                pieces.append((now, block['downloaded'], 'download'))
                now = max(now, block['downloaded'])
            pieces.append((now, begin, 'wait'))
            if block is not None:
                pieces.append((begin, block['computed'], 'compute' if block['label'] is not None else 'unwanted'))
                now, uploaded = block['computed'], block['uploaded']
        return [piece for piece in pieces if piece[0] < piece[1]]

    def _shares(self):
        """What share of the workers' time went to each of the PHASES."""
        seconds = collections.Counter(self._reasons())
        for pieces in self.lanes.values():
            for begin, end, phase in pieces:
                if phase != 'wait':
                    seconds[phase] += max(0, min(end, self.last) - max(begin, self.first_up))
        total = self.run['workers'] * self.seconds
        return {phase: seconds[phase] / total for phase in PHASES}

    def _reasons(self):
        """Worker-seconds of waiting, by what they waited for: see how the blocks stood at the time."""
        changes = []
        for pieces in self.lanes.values():
            for begin, end, phase in pieces:
                if phase == 'wait':
                    changes += [(begin, 'waiting', 1), (end, 'waiting', -1)]
        for block in self.blocks:
            if block['received'] is not None:
                died = block['tries'] > 1       # until it was received again, it was out of reach
                changes += [(block['sent'], 'lost' if died else 'queue', 1),
                            (block['received'], 'lost' if died else 'queue', -1)]
            changes += [(block['queued'], 'unsent', 1), (block['sent'], 'unsent', -1)]
        last_queued = max((block['queued'] for block in self.blocks), default=0)
        seconds, now, before = collections.Counter(), collections.Counter(), 0
        for moment, what, change in sorted(changes):
            reason = next((reason for reason in ('queue', 'unsent', 'lost') if now[reason] > 0),
                          'none' if before < last_queued else 'end')
            seconds[reason] += now['waiting'] * (moment - before)
            now[what] += change
            before = moment
        return seconds

    # Figures ------------------------------------------------------------------------------------

    def efficiency(self):
        """Seconds of computing for each second that a worker could have computed."""
        return self.shares['compute']

    def overhead(self):
        """Seconds that a worker lost, on average, between a block and the next that was there for it."""
        lost = sum(self.shares[phase] for phase in ('download', 'upload', 'queue'))
        return lost * self.run['workers'] * self.seconds / max(1, len(self.computed))

    def compute_seconds(self):
        return [block['computed'] - block['started'] for block in self.computed] or [0.0]

    def collecting(self):
        """The share of the time in which the main script took in results."""
        return sum(end - begin for begin, end in united(self.blocks, 'arrived', 'collected')) / self.seconds

    def vcpu_hours(self):
        """How long workers were up, and so cost money."""
        ends, seconds = {}, 0
        for start in sorted(self.starts, key=lambda start: -start['up']):
            end = start['ended'] or ends.get(start['worker'], self.run['ended'])
            ends[start['worker']] = start['up']
            seconds += end - start['up']
        return seconds / 3600 * float(self.run['vcpus'] or 1)

    def costs(self):
        """An estimate in US dollars, for 'compute', 'sqs' and 's3'."""
        costs = {'compute': self.vcpu_hours() * self.vcpu_hour, 'sqs': 0.0, 's3': 0.0}
        for operation, number in self.run['requests'].items():
            service = operation.partition('.')[0]
            if service in costs:        # those to Batch are free
                costs[service] += number * REQUEST_PRICES.get(operation, REQUEST_PRICES.get(service, 0))
        sizes = [size for block in self.blocks for size in (block['bytes_in'], block['bytes_out'])
                 if size and size <= self.run['inline_bytes']]
        # A large message is paid by its size when it is sent, and again when it is received.
        costs['sqs'] += sum(2 * (size // CHUNK_BYTES) for size in sizes) * SQS_REQUEST
        return costs

    # Words --------------------------------------------------------------------------------------

    def headline(self):
        return '{:,} blocks, {} workers, {}: efficiency {:.0%}, about {} (estimate)'.format(
            len(self.blocks) + len(self.main_blocks), self.run['workers'], span(self.run['ended']),
            self.efficiency(), dollars(sum(self.costs().values())))

    def verdict(self):
        """One or two sentences: what to change."""
        if not self.starts:
            return 'No worker came up. "scripts/status.sh" shows why.'
        if not self.computed:
            return 'No block was computed by a worker.'
        if self.run['broken']:
            return 'The run broke off: ' + self.run['broken'].partition('. ')[0].rstrip('.') + '.'
        if self.efficiency() >= GOOD:
            return self._say_busy()
        shares = self.shares
        large = statistics.median(max(block['bytes_in'], block['bytes_out']) for block in self.computed) > \
            self.run['inline_bytes']
        moving = shares['download'] + shares['upload']
        losses = {self._say_short: shares['queue'] + (0 if large else moving), self._say_data: moving if large else 0,
                  self._say_sending: shares['unsent'], self._say_starved: shares['none'], self._say_end: shares['end'],
                  self._say_start: shares['start'], self._say_lost: shares['lost'] + shares['unwanted']}
        return max(losses, key=losses.get)()

    def _say_busy(self):
        blocks, workers = len(self.computed), self.run['workers']
        text = 'Workers computed for {:.0%} of the time: '.format(self.efficiency())
        if self.first_up > self.seconds:
            return text + 'but starting them took {}, and the work {}. More would save little.'.format(
                span(self.first_up), span(self.seconds))
        most = blocks // BLOCKS_PER_WORKER
        if most > workers:
            return text + 'more workers would help, up to about {:,} with blocks of this size.'.format(most)
        return text + ('more workers would help, with smaller blocks: {} have only {:.1f} blocks each to '
                       'share.'.format(workers, blocks / workers))

    def _say_short(self):
        mean, overhead = statistics.fmean(self.compute_seconds()), self.overhead()      # the first of a worker are slow
        bigger = max(2, int(float('{:.1g}'.format(overhead / SPARE_OVERHEAD / max(mean, 1e-3)))))    # 20, not 21
        text = 'Blocks are short against the overhead (on average {} of computing, {} to hand one over): '.format(
            span(mean), span(overhead))
        enough = len(self.computed) // (bigger * BLOCKS_PER_WORKER)
        if enough < self.run['workers']:
            return text + 'make them about {} times bigger; {} would do.'.format(bigger, count(max(1, enough), 'worker'))
        return text + 'make them about {} times bigger.'.format(bigger)

    def _say_data(self):
        size = sum(block['bytes_in'] + block['bytes_out'] for block in self.computed) / len(self.computed)
        return ('Workers spent {:.0%} of the time moving data ({} a block): bigger blocks will not help. Let workers read '
                'their files themselves, and return smaller data types.'.format(
                    self.shares['download'] + self.shares['upload'], size_of(size)))

    def _say_sending(self):
        size = sum(block['bytes_in'] for block in self.blocks)
        return ('Workers waited {:.0%} of the time for the main script to send them blocks ({} in all): more workers will '
                'not help. Let workers read their files themselves, or run the main script on AWS '
                '("scripts/submit.sh").'.format(self.shares['unsent'], size_of(size)))

    def _say_starved(self):
        text = 'Workers had no block to compute for {:.0%} of the time: '.format(self.shares['none'])
        if self.main_blocks:
            return text + ('RIOS 1.4 gives out blocks in rounds, which wait for their slowest block and for the main '
                           'script. Bigger blocks help some, RIOS 2 helps more, more workers do not.')
        if self.collecting() > 0.5:
            return text + ('the main script was taking in results for {:.0%} of it. More workers will not help; run it on '
                           'AWS ("scripts/submit.sh"), or return less.'.format(self.collecting()))
        return text + ('the main script gave out too few at a time. Raise buffersize, or make its own work between blocks '
                       'quicker; more workers will not help.')

    def _say_end(self):
        times = self.compute_seconds()
        text = 'Workers waited {:.0%} of the time for the last blocks (the longest took {}, the median {}): '.format(
            self.shares['end'], span(max(times)), span(statistics.median(times)))
        if len(times) < self.run['workers']:
            return text + 'there are fewer blocks than workers. Take smaller blocks, or fewer workers.'
        if max(times) > 3 * statistics.median(times):
            return text + 'submit slow blocks first, or take smaller blocks; more workers will not help.'
        return text + 'take smaller blocks, or a number of workers that shares them evenly.'

    def _say_start(self):
        ups = self.ups()
        if len(ups) < self.run['workers']:
            return '{} of {} workers never came up: take fewer, or see "scripts/status.sh" for why.'.format(
                self.run['workers'] - len(ups), self.run['workers'])
        return ('Workers were coming up for {:.0%} of the time, the last {} after the first: the run is short for so many. '
                'Fewer workers would do.'.format(self.shares['start'], span(ups[-1] - ups[0])))

    def _say_lost(self):
        return ('{:.0%} of the time was lost with workers that ended in mid-block. "scripts/status.sh" and the warnings of '
                'the run say why.'.format(self.shares['lost'] + self.shares['unwanted']))

    def ups(self):
        """When each worker came up first (seconds), in order."""
        ups = {}
        for start in self.starts:
            ups[start['worker']] = min(start['up'], ups.get(start['worker'], math.inf))
        return sorted(ups.values())

    def summary(self):
        """Lines for the terminal."""
        run, ups, costs = self.run, self.ups(), self.costs()
        yield 'Run {} of {} (stack {}, {})'.format(run['id'], run['began'], run['stack'], run['region'])
        yield '  ' + self.headline()
        yield '  workers      {} of {} came up{}'.format(
            len(ups), run['workers'], ', the first after {}, the last after {}'.format(
                span(ups[0]), span(ups[-1])) if ups else '')
        late = [up for up in ups if up > self.first_up + 0.1 * self.seconds]
        if late:
            yield '               {} came up only after {}'.format(
                count(len(late), 'worker'), span(late[0]))
        if self.computed:
            times = self.compute_seconds()
            yield '  blocks       {:,} by workers: {} of computing (median; longest {}), {} of overhead'.format(
                len(self.blocks), span(statistics.median(times)), span(max(times)), span(self.overhead()))
            yield '               {} in and {} out each (median)'.format(*(
                size_of(statistics.median(block[name] for block in self.computed)) for name in ('bytes_in', 'bytes_out')))
        if self.main_blocks:
            yield '               {:,} by the main script: {} of computing'.format(
                len(self.main_blocks), span(sum(block['computed'] - block['started'] for block in self.main_blocks)))
        unanswered = run['submitted'] - len(self.blocks)
        if unanswered:
            yield '               {:,} cancelled or never answered'.format(unanswered)
        if self.retried:
            yield '  retries      {} tried again, because a worker ended'.format(count(len(self.retried), 'block'))
        if self.failed:
            yield '  failures     {}, such as {}: {}'.format(
                count(len(self.failed), 'block'), self.failed[0]['label'], self.failed[0]['error'].partition('\n')[0])
        yield '  worker time  ' + ', '.join('{:.0%} {}'.format(self.shares[phase], name)
                                            for phase, (_, name) in PHASES.items() if self.shares[phase] >= 0.005)
        yield '  cost         about {}: compute {} ({:.3g} vCPU-hours at ${:g}), SQS {}, S3 {}'.format(
            dollars(sum(costs.values())), dollars(costs['compute']), self.vcpu_hours(), self.vcpu_hour,
            dollars(costs['sqs']), dollars(costs['s3']))
        leaving = sum(block['bytes_out'] for block in self.blocks) / 1e9 * INTERNET_GB
        if leaving >= 0.01:
            yield '               and {} for results, if the main script runs outside AWS'.format(dollars(leaving))
        if run['ended'] - self.last > max(5, 0.1 * self.seconds):
            yield '  after that   workers stayed {} after the last block, until shutdown()'.format(
                span(run['ended'] - self.last))
        yield ''
        yield self.verdict()


def united(blocks, first, last):
    """The times in which any block was between two of its times: a list of [begin, end]."""
    spans = []
    for begin, end in sorted((block[first], block[last]) for block in blocks if block[first] is not None):
        if spans and begin <= spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([begin, end])
    return spans


def span(seconds):
    """Seconds in words."""
    if seconds < 0.9995:
        return '{:.0f} ms'.format(1000 * seconds)
    if seconds < 100:
        return '{:.3g} s'.format(seconds)
    if seconds < 6000:
        return '{:.3g} min'.format(seconds / 60)
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
    workers = run.run['workers']
    height = min(16, max(1.6, 0.3 * (workers + 2)))
    figure, (lanes, bar) = pyplot.subplots(
        2, 1, figsize=(13, height + 2.9), gridspec_kw={'height_ratios': [height, 0.55]}, layout='constrained')
    figure.suptitle('{}\n{}'.format(run.headline(), wrapped(run.verdict())), fontsize=12)
    draw_lanes(lanes, run)
    draw_bar(bar, run)
    figure.savefig(path, dpi=110)


def draw_lanes(axes, run):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    workers = run.run['workers']
    many = len(run.computed) > 150 * workers      # no room for the edges of blocks
    edges = {} if many else {'edgecolor': 'white', 'linewidth': 0.4}
    for row, pieces in enumerate(run.lanes.values()):
        for phase in ('wait', 'start', *PHASES):
            bars = [(begin, end - begin) for begin, end, what in pieces if what == phase]
            if bars and phase == 'start':
                axes.broken_barh(bars, (row - 0.42, 0.84), facecolor=PHASES['start'][0], hatch='////', edgecolor='#dddddd',
                                 linewidth=0)
            elif bars:
                axes.broken_barh(bars, (row - 0.42, 0.84), facecolor=PHASES.get(phase, ('#dedede',))[0],
                                 **(edges if phase == 'compute' else {}))
    draw_main(axes, run, edges)
    marks = [
        ('tried again', '<', '#f0a030', [(block['started'] or block['received'], block['worker']) for block in run.retried]),
        ('failed', 'X', '#d43d3d', [(block['computed'] or block['received'], block['worker']) for block in run.failed])]
    size = min(9, max(6, 300 / workers))
    handles = []
    for name, marker, colour, points in marks:
        if points:
            axes.plot([point[0] for point in points], [int(point[1]) for point in points], marker, color=colour,
                      markersize=size, markeredgecolor='black', markeredgewidth=0.6, zorder=5)
            handles.append(Line2D([], [], marker=marker, color=colour, markeredgecolor='black', linestyle='', label=name))
    handles.append(Patch(color=COLLECT, label='main script takes in a result'))
    handles.append(Patch(color=PHASES['unsent'][0], label='main script has blocks to send'))
    handles.append(Patch(color='#dedede', label='worker waits (below: for what)'))
    for moment in (run.first_up, run.last):
        axes.axvline(moment, color='black', linewidth=0.8, linestyle=':')
    step = max(1, math.ceil(workers / 50))
    rows = range(0, workers, step)
    axes.set_yticks([-1.3, *rows], ['main script', *('worker {}'.format(row) for row in rows)],
                    fontsize=9 if workers <= 30 else 7)
    axes.set_ylim(workers - 0.4, -2)
    axes.set_xlim(0, run.run['ended'])
    axes.set_xlabel('seconds since the run began')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    axes.legend(handles=handles, loc='lower right', bbox_to_anchor=(1, 1), ncols=len(handles), fontsize=9, frameon=False)


def draw_main(axes, run, edges):
    """The lane of the main script: what it computes and takes in, and below what it has still to send."""
    def bars(blocks, first, last):
        return [(begin, end - begin) for begin, end in united(blocks, first, last)]
    axes.broken_barh([(0, run.run['ended'])], (-1.75, 0.84), facecolor='#f7f7f7')
    axes.broken_barh(bars(run.main_blocks, 'started', 'computed'), (-1.75, 0.6), facecolor=PHASES['compute'][0], **edges)
    axes.broken_barh(bars(run.blocks, 'arrived', 'collected'), (-1.75, 0.6), color=COLLECT, linewidth=0.3)
    axes.broken_barh(bars(run.blocks, 'queued', 'sent'), (-1.15, 0.24), color=PHASES['unsent'][0], linewidth=0.3)


def draw_bar(axes, run):
    """What the workers' time went to, from the first worker up to the last block."""
    left = 0
    for phase, (colour, name) in PHASES.items():
        share = run.shares[phase]
        if share < 0.005:
            continue
        axes.barh(0, share, left=left, color=colour, label='{} {:.0%}'.format(name, share), edgecolor='#888888',
                  linewidth=0.4, hatch='////' if phase == 'start' else None)
        if share > 0.04 and phase != 'start':
            axes.text(left + share / 2, 0, '{:.0%}'.format(share), ha='center', va='center', fontsize=10,
                      color='white' if phase in ('compute', 'upload', 'unsent', 'lost') else 'black')
        left += share
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    axes.set_title('What the time of the workers went to, between the dotted lines', fontsize=10, loc='left')
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, 0), ncols=5, fontsize=9, frameon=False)


def wrapped(text):
    import textwrap
    return '\n'.join(textwrap.wrap(text, 120))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='FOLDER', type=pathlib.Path, help='what RIOS_AWSBATCH_REPORT was')
    parser.add_argument('--vcpu-hour', metavar='DOLLARS', type=float, default=VCPU_HOUR,
                        help='price of a vCPU for an hour (%(default)s, about that of on-demand instances)')
    given = parser.parse_args()
    path = given.folder / 'run.json' if given.folder.is_dir() else given.folder
    try:
        run = Run(path, given.vcpu_hour)
        print('\n'.join(run.summary()))
        picture = path.with_name(path.name.replace('run', 'timeline', 1)).with_suffix('.png')
        draw(run, picture)
        print('\n{}'.format(picture))
    except ReportError as error:
        sys.exit('timeline.py: {}'.format(error))
    except ImportError as error:
        sys.exit('timeline.py: the picture needs matplotlib ({}): pip install matplotlib'.format(error))
    except OSError as error:
        sys.exit('timeline.py: {} cannot be written: {}'.format(error.filename, error.strerror))


if __name__ == '__main__':
    main()
