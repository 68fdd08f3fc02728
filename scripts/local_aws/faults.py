"""What goes wrong, how often. moto never fails; AWS does, and delivers messages twice, late, in any order."""
import random

from local_aws import AwsError


class Faults:
    """Settings that a running server can change.

    errors     fraction of all requests that fail: throttled, or with a 5xx before or after they were done;
               and of the entries of an SQS batch that fail alone
    cut        fraction of all answers that do not come, or break off in the middle
    duplicate  fraction of SQS messages that are delivered twice
    late       fraction of SQS messages that arrive one to two seconds late
    reorder    1: SQS messages come in random order
    seed       of the random numbers
    """

    THROTTLE = {'s3': ('SlowDown', 503), 'sqs': ('RequestThrottled', 403),
                'batch': ('TooManyRequestsException', 429),
                **dict.fromkeys(('ecr', 'logs'), ('ThrottlingException', 400))}

    def __init__(self):
        self.random = random.Random()
        self.set({})

    def set(self, settings):
        """Replace all settings; those not named are off."""
        unknown = set(settings) - {'errors', 'cut', 'duplicate', 'late', 'reorder', 'seed'}
        if unknown:
            raise ValueError(f'unknown fault: {", ".join(sorted(unknown))}')
        self.settings = {name: float(value) for name, value in settings.items()}
        if 'seed' in self.settings:
            self.random.seed(self.settings['seed'])

    def hits(self, name):
        """True for the fraction of the calls that is set for that fault."""
        return self.random.random() < self.settings.get(name, 0)

    def what_comes(self, body):
        """What comes of the body of an answer (bytes); None where not even its head does."""
        return self.random.choice((None, body[:len(body) // 2])) if self.hits('cut') else body

    def of_request(self, request):
        """(error, whether the request is carried out all the same), or None."""
        if not self.hits('errors'):
            return None
        kind = self.random.choice(('throttle', 'broken', 'unavailable', 'done but broken'))
        if kind == 'throttle':
            code, status = self.THROTTLE.get(request.service, ('Throttling', 400))
            return AwsError(code, 'Rate exceeded', status), False
        if kind == 'unavailable':
            return AwsError('ServiceUnavailable', 'Service Unavailable', 503), False
        code = 'InternalError' if request.service in ('s3', 'sqs') else 'InternalFailure'
        message = 'We encountered an internal error. Please try again.'
        return AwsError(code, message, 500), kind == 'done but broken'
