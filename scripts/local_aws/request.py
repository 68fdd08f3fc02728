"""What a request asks of which service, and how each service writes an error.

moto finds this out again for each service in its own way, after its dispatcher has found out the service;
IAM, the faults and the counts need it once, before moto is asked at all."""
import json
import re
import select
import socket
import urllib.parse
import uuid
from xml.sax.saxutils import escape


class Request:
    """One HTTP request, and what it asks of which service."""

    CREDENTIAL = re.compile(r'Credential=([^/,\s]+)/\d+/([^/]+)/([^/]+)/aws4_request')
    BATCH = {name.lower(): name for name in (
        'CreateComputeEnvironment', 'DescribeComputeEnvironments', 'DeleteComputeEnvironment',
        'UpdateComputeEnvironment', 'CreateJobQueue', 'DescribeJobQueues', 'UpdateJobQueue', 'DeleteJobQueue',
        'RegisterJobDefinition', 'DeregisterJobDefinition', 'DescribeJobDefinitions', 'SubmitJob',
        'DescribeJobs', 'ListJobs', 'TerminateJob', 'CancelJob')}
    # S3 says in the query what it wants of a bucket or an object; the rest is plain get, put, delete, list.
    S3_BUCKET = {'policy': 'BucketPolicy', 'versioning': 'BucketVersioning', 'location': 'BucketLocation',
                 'encryption': 'BucketEncryption', 'lifecycle': 'BucketLifecycleConfiguration',
                 'tagging': 'BucketTagging', 'publicAccessBlock': 'PublicAccessBlock', 'acl': 'BucketAcl',
                 'ownershipControls': 'BucketOwnershipControls'}

    def __init__(self, method, target, headers, body, connection=None):
        self.method, self.target, self.headers, self.body = method, target, headers, body
        self.connection = connection
        path, _, self.query_string = target.partition('?')
        self.path = urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(self.query_string, keep_blank_values=True))
        self.access_key, self.region, self.service = None, 'us-east-1', 's3'
        signed = self.CREDENTIAL.search(headers.get('authorization', ''))
        if signed:
            self.access_key, self.region, self.service = signed.groups()
        elif 'X-Amz-Credential' in self.query:
            self.access_key, _, self.region, self.service = self.query['X-Amz-Credential'].split('/')[:4]
        self.form = {}
        if headers.get('content-type', '').startswith('application/x-www-form-urlencoded'):
            self.form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        self.bucket, _, self.key = (self.path[1:].partition('/') if self.service == 's3' else ('', '', ''))
        self.operation = self._operation()
        self._parameters = None

    def _operation(self):
        target = self.headers.get('x-amz-target')
        if target:
            return target.rpartition('.')[2]
        if 'Action' in self.form:
            return self.form['Action']
        if self.service == 'batch':
            name = self.path.rsplit('/', 1)[-1]
            return self.BATCH.get(name) or {'GET': 'ListTagsForResource', 'POST': 'TagResource',
                                            'DELETE': 'UntagResource'}[self.method]
        return self._s3_operation() if self.service == 's3' else self.method

    def _s3_operation(self):
        verb = self.method.capitalize()
        if not self.bucket:
            return 'ListBuckets'
        if not self.key:
            for word, name in self.S3_BUCKET.items():
                if word in self.query:
                    return verb + name
            if 'delete' in self.query:
                return 'DeleteObjects'
            if verb == 'Get':
                for word in ('versions', 'uploads'):
                    if word in self.query:
                        return {'versions': 'ListObjectVersions', 'uploads': 'ListMultipartUploads'}[word]
                return 'ListObjectsV2' if 'list-type' in self.query else 'ListObjects'
            return {'Put': 'CreateBucket', 'Delete': 'DeleteBucket', 'Head': 'HeadBucket'}.get(verb, verb)
        if 'uploads' in self.query:
            return 'CreateMultipartUpload'
        if 'uploadId' in self.query:
            return {'Put': 'UploadPart', 'Post': 'CompleteMultipartUpload', 'Delete': 'AbortMultipartUpload',
                    'Get': 'ListParts'}.get(verb, verb)
        if 'tagging' in self.query:
            return verb + 'ObjectTagging'
        return 'CopyObject' if 'x-amz-copy-source' in self.headers else verb + 'Object'

    @property
    def parameters(self):
        """The parameters of a JSON request, or the form of a query request."""
        if self._parameters is None:
            self._parameters = self.form
            if not self.form and self.service != 's3' and self.body[:1] == b'{':
                self._parameters = json.loads(self.body)
        return self._parameters

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


class Response:
    """Status, headers (a list of pairs) and body of an answer."""

    def __init__(self, status=200, headers=(), body=b''):
        self.status, self.headers, self.body = status, list(headers), body

    @classmethod
    def of_json(cls, value, status=200, headers=(), content_type='application/x-amz-json-1.0'):
        """An answer in JSON."""
        return cls(status, [('Content-Type', content_type), *headers], json.dumps(value).encode())


def error_response(request, error):
    """The error as the protocol of the request's service writes it."""
    request_id = str(uuid.uuid4())
    code, message, side = error.code, error.message, 'Sender' if error.status < 500 else 'Receiver'
    headers = [('x-amzn-RequestId', request_id)]
    if request.service == 's3':
        text = ('<?xml version="1.0" encoding="UTF-8"?>\n'
                f'<Error><Code>{code}</Code><Message>{escape(message)}</Message>'
                f'<RequestId>{request_id}</RequestId></Error>')
    elif request.service == 'ec2':
        text = (f'<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>'
                f'</Errors><RequestID>{request_id}</RequestID></Response>')
    elif request.form:
        text = (f'<ErrorResponse><Error><Type>{side}</Type><Code>{code}</Code><Message>{escape(message)}'
                f'</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>')
    else:
        name = code.rpartition('.')[2]
        shape = {'NonExistentQueue': 'QueueDoesNotExist'}.get(name, name)
        headers += [('x-amzn-ErrorType', shape), ('x-amzn-query-error', f'{code};{side}')]
        return Response.of_json({'__type': shape, 'message': message}, error.status, headers)
    return Response(error.status, [('Content-Type', 'text/xml'), *headers], text.encode())
