"""Messages. moto walks through all messages for each receive and sleeps between two looks, so a queue gets
slower as it gets longer. Here a long poll wakes when a message arrives or becomes visible again. AWS's limits
and error texts are added, and the faults of a standard queue. Everything else about queues is moto's. What is
asked must be in SQS's JSON protocol, which botocore has used since 1.29.127 (2023)."""
import base64
import collections
import copy
import hashlib
import heapq
import re
import threading
import time
import types
import uuid

from moto.sqs import models
from moto.sqs.models import Queue, SQSBackend, sqs_backends

from local_aws import ACCOUNT, AwsError

MAX_BYTES = 1 << 20                # of one message, and of one batch of messages
INVALID_CHARACTER = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
NO_QUEUE = 'AWS.SimpleQueueService.NonExistentQueue', 'The specified queue does not exist.'


def bad(name, value, why):
    """The error of a bad value."""
    return AwsError('InvalidParameterValue', f'Value {value} for parameter {name} is invalid. Reason: {why}')


def number(given, name, default, most, least=0):
    """A parameter that must lie between AWS's limits."""
    value = given.get(name)
    value = int(default if value is None else value)
    if not least <= value <= most:
        raise bad(name, value, f'Must be between {least} and {most}, if provided.')
    return value


def size_of(given):
    """Bytes of a message that is sent: its body, and the names, types and values of its attributes."""
    size = len(given.get('MessageBody', '').encode())
    for name, value in (given.get('MessageAttributes') or {}).items():
        size += len(name) + len(value['DataType']) + len(value.get('StringValue', '').encode())
        size += len(base64.b64decode(value.get('BinaryValue', '')))
    return size


class MessageStore:
    """The messages of one standard queue. No call takes longer because the queue is long.

    A message that is in it has a key, and a moment `due` from which it may be received; None while it may.
    """

    def __init__(self):
        self.deleted = False
        self.changed = threading.Condition(threading.Lock())
        self.messages = {}                       # all that are not deleted, by key
        self.ready = collections.deque()         # those that may be received
        self.waiting = []                        # heap of (due, key): late or in flight; some stale

    def put(self, message, delay):
        """Add a copy of a message that may be received after so many seconds."""
        with self.changed:
            self._check()
            message = copy.copy(message)
            message.key = uuid.uuid4().hex
            self.messages[message.key] = message
            self._schedule(message, delay)

    def _check(self):
        if self.deleted:
            raise AwsError(*NO_QUEUE)
        self._ripen()

    def _schedule(self, message, delay):
        if delay <= 0:
            message.due = None
            self.ready.append(message)
            self.changed.notify()
            return
        message.due = time.monotonic() + delay
        earlier = not self.waiting or message.due < self.waiting[0][0]
        heapq.heappush(self.waiting, (message.due, message.key))
        if earlier:
            self.changed.notify_all()

    def _ripen(self):
        """Move what has become visible to the ready ones."""
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            due, key = heapq.heappop(self.waiting)
            message = self.messages.get(key)
            if message is not None and message.due == due:
                message.due = None
                self.ready.append(message)

    def receive(self, count, wait, visibility, client_is_there, shuffle):
        """Up to `count` messages, as soon as there is one, within `wait` seconds, as pairs with handles."""
        deadline = time.monotonic() + wait
        with self.changed:
            while True:
                self._check()
                taken = []
                while self.ready and len(taken) < count:
                    if not taken and not client_is_there():
                        self.changed.notify()
                        return []
                    if shuffle:
                        self.ready.rotate(shuffle.randrange(min(len(self.ready), 100)))
                    message = self.ready.popleft()
                    if message.key in self.messages:           # not deleted meanwhile
                        taken.append(message)
                now = time.monotonic()
                if taken or now >= deadline:
                    break
                self.changed.wait(min([deadline] + [due for due, _ in self.waiting[:1]]) - now)
            for message in taken:
                message.receives += 1
                message.received = now
                self._schedule(message, visibility)
            if self.ready:
                self.changed.notify()
            # As they are now: another receive may follow at once.
            return [copy.copy(message) for message in taken]

    def _find(self, handle):
        """The message of a receipt handle, if that is of its last receive."""
        self._check()
        try:
            key, receives = base64.b64decode(handle, validate=True).decode().split(' ')
            receives = int(receives)
        except ValueError:
            raise AwsError('ReceiptHandleIsInvalid', f'The input receipt handle "{handle}" is not a valid '
                           'receipt handle.', 404) from None
        message = self.messages.get(key)
        return message if message is not None and message.receives == receives else None

    def delete(self, handle):
        """Delete by the last receipt handle; with an older one AWS says yes and deletes nothing."""
        with self.changed:
            message = self._find(handle)
            if message:
                del self.messages[message.key]

    def change_visibility(self, handle, seconds, most):
        """Make a message in flight visible after some seconds, at most so many after it was received."""
        with self.changed:
            message = self._find(handle)
            if message is None or message.due is None:
                raise bad('ReceiptHandle', handle,
                          'Message does not exist or is not available for visibility timeout change.')
            if time.monotonic() + seconds - message.received > most:
                raise bad('VisibilityTimeout', seconds, 'Total VisibilityTimeout for the message is beyond '
                          'the limit [43200 seconds].')
            self._schedule(message, seconds)

    def close(self):
        """The queue is deleted: long polls answer at once that it does not exist."""
        with self.changed:
            self.deleted = True
            self.messages.clear()
            self.changed.notify_all()

    def count(self, test):
        """How many messages pass a test."""
        with self.changed:
            self._ripen()
            return sum(map(bool, map(test, self.messages.values())))


class Sqs:
    """The operations on messages, with AWS's limits and error texts."""

    def __init__(self, faults):
        self.faults = faults
        self.hidden = 43200.0                    # seconds for which a message may be in flight
        self.operations = {
            'SendMessage': self.send, 'ReceiveMessage': self.receive,
            'DeleteMessage': lambda queue, given, _: queue.store.delete(given['ReceiptHandle']),
            'ChangeMessageVisibility': lambda queue, given, _: queue.store.change_visibility(
                given['ReceiptHandle'], number(given, 'VisibilityTimeout', None, 43200), self.hidden)}

    def call(self, request):
        """Carry out the operation of the request; None where moto does."""
        work, given = self.operations.get(request.operation.removesuffix('Batch')), request.parameters
        if work is None:
            return None
        queue = sqs_backends[ACCOUNT][request.region].queues.get(given.get('QueueUrl', '').rpartition('/')[2])
        if queue is None:
            raise AwsError(*NO_QUEUE)
        if request.operation.endswith('Batch'):
            return self._each(given.get('Entries') or [], lambda entry: work(queue, entry, request))
        return work(queue, given, request) or {}

    def _each(self, entries, work):
        """Do each entry of a batch by itself; one that fails does not stop the others."""
        size, done, failed = sum(map(size_of, entries)), [], []
        for wrong, code, message in (
                (not entries, 'EmptyBatchRequest', 'There should be at least one entry in the request.'),
                (len(entries) > 10, 'TooManyEntriesInBatchRequest',
                 f'Maximum number of entries per request are 10. You have sent {len(entries)}.'),
                (size > MAX_BYTES, 'BatchRequestTooLong', 'Batch requests cannot be longer than '
                 f'{MAX_BYTES} bytes. You have sent {size} bytes.')):
            if wrong:
                raise AwsError('AWS.SimpleQueueService.' + code, message)
        for entry in entries:
            try:
                if self.faults.hits('errors'):
                    raise AwsError('InternalError', 'We encountered an internal error.', 500)
                done.append({'Id': entry['Id'], **(work(entry) or {})})
            except AwsError as error:
                if error.code == NO_QUEUE[0]:
                    raise
                failed.append({'Id': entry['Id'], 'SenderFault': error.status < 500, 'Code': error.code,
                               'Message': error.message})
        return {'Successful': done, 'Failed': failed}

    def send(self, queue, given, _):
        """SendMessage"""
        body = given.get('MessageBody')
        if not body:
            raise AwsError('MissingParameter', 'The request must contain the parameter MessageBody.')
        if INVALID_CHARACTER.search(body):
            raise AwsError('InvalidMessageContents', 'Invalid characters found. Valid unicode characters are '
                           '#x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF')
        if size_of(given) > queue.maximum_message_size:
            raise AwsError('InvalidParameterValue', 'One or more parameters are invalid. Reason: Message '
                           f'must be shorter than {queue.maximum_message_size} bytes.')
        message = types.SimpleNamespace(
            id=str(uuid.uuid4()), body=body, md5=hashlib.md5(body.encode()).hexdigest(),
            attributes=given.get('MessageAttributes') or {}, receives=0)
        delay = number(given, 'DelaySeconds', queue.delay_seconds, 900)
        if self.faults.hits('late'):
            delay += self.faults.random.uniform(1, 2)
        queue.store.put(message, delay)
        if self.faults.hits('duplicate'):
            queue.store.put(message, delay + self.faults.random.uniform(0, 1))
        return {'MessageId': message.id, 'MD5OfMessageBody': message.md5}

    def receive(self, queue, given, request):
        """ReceiveMessage"""
        taken = queue.store.receive(
            number(given, 'MaxNumberOfMessages', 1, 10, 1),
            number(given, 'WaitTimeSeconds', queue.receive_message_wait_time_seconds, 20),
            number(given, 'VisibilityTimeout', queue.visibility_timeout, 43200),
            request.client_is_there, self.faults.random if self.faults.hits('reorder') else None)
        names = {*(given.get('AttributeNames') or []), *(given.get('MessageSystemAttributeNames') or [])}
        answers = []
        for message in taken:
            handle = base64.b64encode(f'{message.key} {message.receives}'.encode()).decode()
            answer = {'MessageId': message.id, 'ReceiptHandle': handle, 'MD5OfBody': message.md5,
                      'Body': message.body}
            if names & {'ApproximateReceiveCount', 'All'}:
                answer['Attributes'] = {'ApproximateReceiveCount': str(message.receives)}
            # Whichever are asked for: a message has all or none.
            if message.attributes and given.get('MessageAttributeNames'):
                answer['MessageAttributes'] = message.attributes
            answers.append(answer)
        return {'Messages': answers} if answers else {}

    @staticmethod
    def limit(size):
        """Let queues hold messages of so many bytes at most, as they did before 2025."""
        models.MAXIMUM_MESSAGE_LENGTH = models.MAXIMUM_MESSAGE_SIZE_ATTR_UPPER_BOUND = size

    @staticmethod
    def install():
        """Let moto's queues have a store, count from it, and close it when they go."""
        moto_init, moto_delete = Queue.__init__, SQSBackend.delete_queue

        def init(queue, *args, **kwargs):
            queue.store = MessageStore()
            moto_init(queue, *args, **kwargs)

        def delete_queue(backend, queue_name):
            queue = backend.get_queue(queue_name)
            moto_delete(backend, queue_name)
            queue.store.close()
        Queue.__init__, SQSBackend.delete_queue = init, delete_queue
        for name, test in (('', lambda message: message.due is None),
                           ('_not_visible', lambda message: message.due is not None and message.receives),
                           ('_delayed', lambda message: message.due is not None and not message.receives)):
            setattr(Queue, 'approximate_number_of_messages' + name,
                    property(lambda queue, test=test: queue.store.count(test)))
