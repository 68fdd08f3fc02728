"""What a request asks of which service, and how each service writes an error.

moto finds this out again for each service in its own way; IAM, the faults and the counts need it once, before
moto is asked at all. What the paths and queries of S3 and Batch mean stands in botocore's models of them."""
import collections
import functools
import json
import re
import select
import socket
import urllib.parse
import uuid
from xml.sax.saxutils import escape

import botocore.session

ERROR = '<Code>{code}</Code><Message>{message}</Message>'
# As each protocol writes an error in XML; the others write JSON.
ERRORS = {
    's3': f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{ERROR}<RequestId>{{id}}</RequestId></Error>',
    'ec2': f'<Response><Errors><Error>{ERROR}</Error></Errors><RequestID>{{id}}</RequestID></Response>',
    'query': f'<ErrorResponse><Error><Type>{{side}}</Type>{ERROR}</Error><RequestId>{{id}}</RequestId>'
             '</ErrorResponse>'}


@functools.lru_cache(None)
def operations_of(service):
    """Method, pattern of the path, words that must be in query or headers, and name of each operation."""
    model = botocore.session.get_session().get_service_model(service)
    found = []
    for operation in map(model.operation_model, model.operation_names):
        path, _, query = operation.http['requestUri'].partition('?')
        words = {word.partition('=')[0] for word in query.split('&')} - {''}
        for name in operation.input_shape.required_members if operation.input_shape else ():
            place = operation.input_shape.members[name].serialization
            words |= {place['name']} if place.get('location') in ('querystring', 'header') else set()
        pattern = re.sub(r'{\w+}', '[^/]+', re.sub(r'{\w+\+}', '.+', path))
        if not operation.deprecated:
            found.append((operation.http['method'], re.compile(pattern + '/?'), words, operation.name))
    return found


class Request:
    """One HTTP request, and what it asks of which service."""

    CREDENTIAL = re.compile(r'Credential=([^/,\s]+)/\d+/([^/]+)/([^/]+)/aws4_request')

    def __init__(self, method, target, headers, body, connection=None):
        self.method, self.target, self.headers, self.body = method, target, headers, body
        self.connection = connection
        path, _, query = target.partition('?')
        self.path = urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.access_key, self.region, self.service = None, 'us-east-1', 's3'
        signed = self.CREDENTIAL.search(headers.get('authorization', ''))
        if signed:
            self.access_key, self.region, self.service = signed.groups()
        self.form = {}
        if headers.get('content-type', '').startswith('application/x-www-form-urlencoded'):
            self.form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        self.bucket, _, self.key = (self.path[1:].partition('/') if self.service == 's3' else ('', '', ''))
        self.operation = self._operation(path)

    def _operation(self, path):
        """Of those that the path and the words may mean, the one that takes most words."""
        if 'x-amz-target' in self.headers:
            return self.headers['x-amz-target'].rpartition('.')[2]
        if self.service not in ('s3', 'batch'):
            return self.form.get('Action', self.method)
        words = {*self.query, *self.headers}
        found = [(len(wanted), name) for method, pattern, wanted, name in operations_of(self.service)
                 if method == self.method and wanted <= words and pattern.fullmatch(path)]
        return max(found, key=lambda item: item[0], default=(0, self.method))[1]

    @functools.cached_property
    def parameters(self):
        """The parameters of a JSON request, or the form of a query request."""
        return json.loads(self.body) if self.service != 's3' and self.body[:1] == b'{' else self.form

    def client_is_there(self):
        """Whether the client still waits. AWS hands no message to a connection that has been closed."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if not poll.poll(0):
            return True
        try:
            return self.connection.recv(1, socket.MSG_PEEK) != b''
        except OSError:
            return False


# Of an answer; the headers are a list of pairs.
Response = collections.namedtuple('Response', 'status headers body')


def json_response(value, status=200, headers=()):
    """An answer in JSON."""
    headers = [('Content-Type', 'application/x-amz-json-1.0'), *headers]
    return Response(status, headers, json.dumps(value).encode())


def error_response(request, error):
    """The error as the protocol of the request's service writes it."""
    request_id, side = str(uuid.uuid4()), 'Sender' if error.status < 500 else 'Receiver'
    headers = [('x-amzn-RequestId', request_id)]
    form = ERRORS.get(request.service) or (ERRORS['query'] if request.form else None)
    if form:
        text = form.format(code=error.code, message=escape(error.message), id=request_id, side=side)
        return Response(error.status, [('Content-Type', 'text/xml'), *headers], text.encode())
    name = error.code.rpartition('.')[2]
    shape = {'NonExistentQueue': 'QueueDoesNotExist'}.get(name, name)
    headers += [('x-amzn-ErrorType', shape), ('x-amzn-query-error', f'{error.code};{side}')]
    return json_response({'__type': shape, 'message': error.message}, error.status, headers)
