"""Messages. moto walks through all messages for each receive and sleeps between two looks, so a queue gets
slower as it gets longer. Here a long poll wakes when a message arrives or becomes visible again. AWS's limits
and error texts are added, and the faults of a standard queue. Everything else about queues is moto's.

They are asked for in SQS's JSON protocol alone, which botocore has used since 1.29.127 (2023).
"""
import base64
import collections
import hashlib
import heapq
import re
import threading
import time
import uuid

from local_aws import ACCOUNT, AwsError

MAX_BYTES = 1 << 20                # of one message, and of one batch of messages
MAX_IN_FLIGHT = 120_000
MAX_VISIBILITY = 12 * 3600


def bad(name, value, why):
    """Raise the error of a bad value."""
    raise AwsError('InvalidParameterValue', f'Value {value} for parameter {name} is invalid. Reason: {why}')


class Message:
    """A message in a queue, and how it fared."""

    __slots__ = ('key', 'id', 'body', 'md5', 'attributes', 'attributes_md5', 'sent', 'first', 'receives',
                 'due')

    def __init__(self, body, attributes):
        self.key, self.id = uuid.uuid4().hex, str(uuid.uuid4())
        self.attributes, self.attributes_md5 = attributes, attributes and md5_of(attributes)
        self.body, self.md5 = body, hashlib.md5(body.encode()).hexdigest()
        self.sent, self.first, self.receives = time.time(), None, 0
        self.due = 0.0                           # moment from which it may be received; None while it may

    def twin(self):
        """The same message once more, as a standard queue may deliver it."""
        other = Message(self.body, self.attributes)
        other.id, other.sent = self.id, self.sent
        return other

    def handle(self):
        """The receipt handle of the last receive."""
        return base64.b64encode(f'{self.key} {self.receives}'.encode()).decode()


class MessageStore:
    """The messages of one standard queue. No call takes longer because the queue is long."""

    def __init__(self, queue):
        self.queue, self.deleted = queue, False
        self.changed = threading.Condition(threading.Lock())
        self.messages = {}                       # all that are not deleted, by key
        self.ready = collections.deque()         # those that may be received
        self.waiting = []                        # heap of (due, key): late or in flight; some stale

    def put(self, message, delay):
        """Add a message that may be received after so many seconds."""
        with self.changed:
            self._alive()
            self.messages[message.key] = message
            self._schedule(message, delay)

    def _alive(self):
        if self.deleted:
            raise AwsError('AWS.SimpleQueueService.NonExistentQueue', 'The specified queue does not exist.')

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
        while self.waiting:
            due, key = self.waiting[0]
            message = self.messages.get(key)
            if message is not None and message.due == due:
                if due > now:
                    return
                message.due = None
                self.ready.append(message)
            heapq.heappop(self.waiting)

    def receive(self, count, wait, visibility, client_is_there, shuffle):
        """Up to `count` messages, as soon as there is one, within `wait` seconds."""
        deadline = time.monotonic() + wait
        with self.changed:
            while True:
                self._alive()
                self._ripen()
                taken = []
                while self.ready and len(taken) < count:
                    if not taken and not client_is_there():
                        self.changed.notify()
                        return []
                    if shuffle:
                        self.ready.rotate(shuffle.randrange(min(len(self.ready), 100)))
                    message = self.ready.popleft()
                    if self._may_go(message):
                        taken.append(message)
                now = time.monotonic()
                if taken or now >= deadline:
                    break
                due = min(deadline, self.waiting[0][0]) if self.waiting else deadline
                self.changed.wait(due - now)
            if len(self.messages) - len(self.ready) > MAX_IN_FLIGHT:
                raise AwsError('OverLimit', 'The maximum number of in flight messages is reached.', 403)
            answer = []
            for message in taken:
                message.receives += 1
                message.first = message.first or time.time()
                answer.append((message, message.handle(), message.receives))
                self._schedule(message, visibility)
            if self.ready:
                self.changed.notify()
            return answer

    def _may_go(self, message):
        """False for a message that was deleted or is too old."""
        if self.messages.get(message.key) is not message:
            return False
        if time.time() - message.sent > self.queue.message_retention_period:
            del self.messages[message.key]
            return False
        return True

    def _find(self, handle):
        """The message of a receipt handle, and whether the handle is of its last receive."""
        try:
            key, receives = base64.b64decode(handle, validate=True).decode().split(' ')
            receives = int(receives)
        except ValueError:
            raise AwsError('ReceiptHandleIsInvalid', f'The input receipt handle "{handle}" is not a valid '
                           'receipt handle.', 404) from None
        message = self.messages.get(key)
        return message, message is not None and message.receives == receives

    def delete(self, handle):
        """Delete by the last receipt handle; with an older one AWS says yes and deletes nothing."""
        with self.changed:
            self._alive()
            message, is_last = self._find(handle)
            if is_last:
                del self.messages[message.key]

    def change_visibility(self, handle, seconds):
        """Make a message in flight visible after so many seconds from now."""
        if not 0 <= seconds <= MAX_VISIBILITY:
            bad('VisibilityTimeout', seconds, 'Must be between 0 and 43200, if provided.')
        with self.changed:
            self._alive()
            self._ripen()
            message, is_last = self._find(handle)
            if not is_last or message.due is None:
                bad('ReceiptHandle', handle,
                    'Message does not exist or is not available for visibility timeout change.')
            self._schedule(message, seconds)

    def close(self):
        """The queue is deleted: long polls answer at once that it does not exist."""
        with self.changed:
            self.deleted = True
            self.messages.clear()
            self.changed.notify_all()

    def count(self, waiting, received):
        """How many may be received, or are in flight (waiting, received), or late (waiting, not received)."""
        with self.changed:
            self._ripen()
            return sum(message.due is not None and (message.receives > 0) == received if waiting else
                       message.due is None for message in self.messages.values())


def store_of(queue):
    """The message store of a moto queue."""
    store = queue.__dict__.get('store')
    return store if store is not None else queue.__dict__.setdefault('store', MessageStore(queue))


def size_of(given):
    """Bytes of a message that is sent: its body, and the names, types and values of its attributes."""
    size = len(given['MessageBody'].encode())
    for name, value in (given.get('MessageAttributes') or {}).items():
        size += len(name) + len(value['DataType']) + len(value.get('StringValue', '').encode())
        size += len(base64.b64decode(value.get('BinaryValue', '')))
    return size


def md5_of(attributes):
    """SQS's digest of a message's attributes, by moto."""
    from moto.sqs.models import Message as MotoMessage
    model = MotoMessage('', '')
    for name, value in attributes.items():
        model.message_attributes[name] = {**value, 'BinaryValue': base64.b64decode(value['BinaryValue'])} if (
            'BinaryValue' in value) else value
    return model.attribute_md5


class Sqs:
    """The operations on messages, with AWS's limits and error texts."""

    INVALID_CHARACTER = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')

    def __init__(self, faults):
        self.faults = faults
        self.operations = {
            'SendMessage': lambda queue, store, given, _: self._put(queue, store, given),
            'SendMessageBatch': self.send_batch, 'ReceiveMessage': self.receive,
            'DeleteMessage': lambda _, store, given, __: store.delete(given['ReceiptHandle']),
            'DeleteMessageBatch': lambda _, store, given, __: self._each(
                self._entries(given, 'Delete'), lambda entry: store.delete(entry['ReceiptHandle'])),
            'ChangeMessageVisibility': lambda _, store, given, __: store.change_visibility(
                given['ReceiptHandle'], int(given['VisibilityTimeout'])),
            'ChangeMessageVisibilityBatch': lambda _, store, given, __: self._each(
                self._entries(given, 'ChangeVisibility'), lambda entry: store.change_visibility(
                    entry['ReceiptHandle'], int(entry['VisibilityTimeout'])))}

    def call(self, request, given):
        """Carry out the operation of the request with the given parameters (in the JSON protocol's shape)."""
        from moto.sqs.models import sqs_backends
        name = given.get('QueueUrl', '').rpartition('/')[2]
        queue = sqs_backends[ACCOUNT][request.region].queues.get(name)
        if queue is None:
            raise AwsError('AWS.SimpleQueueService.NonExistentQueue', 'The specified queue does not exist.')
        return self.operations[request.operation](queue, store_of(queue), given, request)

    def _message(self, queue, given):
        body = given.get('MessageBody')
        if not body:
            raise AwsError('MissingParameter', 'The request must contain the parameter MessageBody.')
        if self.INVALID_CHARACTER.search(body):
            raise AwsError('InvalidMessageContents', 'Invalid characters found. Valid unicode characters are '
                           '#x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF')
        if size_of(given) > queue.maximum_message_size:
            raise AwsError('InvalidParameterValue', 'One or more parameters are invalid. Reason: Message '
                           f'must be shorter than {queue.maximum_message_size} bytes.')
        return Message(body, given.get('MessageAttributes') or {})

    def _put(self, queue, store, given):
        message = self._message(queue, given)
        delay = given.get('DelaySeconds')
        delay = queue.delay_seconds if delay is None else int(delay)
        if self.faults.hits(self.faults.late):
            delay += self.faults.random.uniform(1, 2)
        store.put(message, delay)
        if self.faults.hits(self.faults.duplicate):
            store.put(message.twin(), delay + self.faults.random.uniform(0, 1))
        answer = {'MessageId': message.id, 'MD5OfMessageBody': message.md5}
        if message.attributes:
            answer['MD5OfMessageAttributes'] = message.attributes_md5
        return answer

    def send_batch(self, queue, store, given, _):
        """SendMessageBatch"""
        entries = self._entries(given, 'Send')
        size = sum(map(size_of, entries))
        if size > MAX_BYTES:
            raise AwsError('AWS.SimpleQueueService.BatchRequestTooLong', 'Batch requests cannot be longer '
                           f'than {MAX_BYTES} bytes. You have sent {size} bytes.')
        return self._each(entries, lambda entry: self._put(queue, store, entry))

    @staticmethod
    def _entries(given, verb):
        entries, prefix = given.get('Entries') or [], 'AWS.SimpleQueueService.'
        if not entries:
            raise AwsError(prefix + 'EmptyBatchRequest',
                           f'There should be at least one {verb}MessageBatchRequestEntry in the request.')
        if len(entries) > 10:
            raise AwsError(prefix + 'TooManyEntriesInBatchRequest',
                           f'Maximum number of entries per request are 10. You have sent {len(entries)}.')
        if len({entry['Id'] for entry in entries}) < len(entries):
            raise AwsError(prefix + 'BatchEntryIdsNotDistinct', 'Two or more batch entries have the same Id.')
        return entries

    def _each(self, entries, work):
        """Do each entry of a batch by itself; one that fails does not stop the others."""
        done, failed = [], []
        for entry in entries:
            try:
                if self.faults.hits(self.faults.errors):
                    raise AwsError('InternalError', 'We encountered an internal error.', 500)
                done.append({'Id': entry['Id'], **(work(entry) or {})})
            except AwsError as error:
                if error.code.endswith('NonExistentQueue'):
                    raise
                failed.append({'Id': entry['Id'], 'SenderFault': error.status < 500, 'Code': error.code,
                               'Message': error.message})
        return {'Successful': done, 'Failed': failed}

    def receive(self, queue, store, given, request):
        """ReceiveMessage"""
        count = int(given.get('MaxNumberOfMessages', 1))
        wait = given.get('WaitTimeSeconds')
        wait = int(queue.receive_message_wait_time_seconds if wait is None else wait)
        for name, value, low, high in (('MaxNumberOfMessages', count, 1, 10),
                                       ('WaitTimeSeconds', wait, 0, 20)):
            if not low <= value <= high:
                bad(name, value, f'Must be between {low} and {high}, if provided.')
        visibility = given.get('VisibilityTimeout')
        visibility = int(queue.visibility_timeout if visibility is None else visibility)
        taken = store.receive(count, wait, visibility, request.client_is_there,
                              self.faults.random if self.faults.reorder else None)
        system = set(given.get('AttributeNames') or []) | set(given.get('MessageSystemAttributeNames') or [])
        names = given.get('MessageAttributeNames') or []        # whichever: a message has all or none
        return {'Messages': [self._described(*item, system, names) for item in taken]} if taken else {}

    @staticmethod
    def _described(message, handle, receives, system, names):
        answer = {'MessageId': message.id, 'ReceiptHandle': handle, 'MD5OfBody': message.md5,
                  'Body': message.body}
        attributes = {'SenderId': 'AIDAIT2UOQQY3AUEKVGXU', 'SentTimestamp': str(int(message.sent * 1000)),
                      'ApproximateReceiveCount': str(receives),
                      'ApproximateFirstReceiveTimestamp': str(int(message.first * 1000))}
        wanted = {name: value for name, value in attributes.items() if name in system or 'All' in system}
        if wanted:
            answer['Attributes'] = wanted
        if message.attributes and names:
            answer.update(MessageAttributes=message.attributes, MD5OfMessageAttributes=message.attributes_md5)
        return answer

    def install(self):
        """Let moto's queues count from the store, and close it when they go."""
        from moto.sqs.models import Queue, SQSBackend
        for name, which in (('', (False, False)), ('_not_visible', (True, True)),
                            ('_delayed', (True, False))):
            setattr(Queue, 'approximate_number_of_messages' + name,
                    property(lambda queue, which=which: store_of(queue).count(*which)))
        moto_delete = SQSBackend.delete_queue

        def delete_queue(backend, queue_name):
            queue = backend.get_queue(queue_name)
            moto_delete(backend, queue_name)
            store_of(queue).close()
        SQSBackend.delete_queue = delete_queue
