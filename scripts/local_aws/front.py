"""HTTP, and the way of a request: counted, delayed, failed, allowed, carried out.

moto's own server handles a request in milliseconds, closes connections, and asks each of its services whose
the request is. This one parses it once, keeps connections, and calls the one WSGI application of moto's that
is meant, so that a benchmark measures what is asked rather than who answers."""
import collections
import http.server
import os
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback

import boto3
from moto.server import create_backend_app
from werkzeug.test import create_environ, run_wsgi_app

from local_aws import AwsError, cloudformation, disk, resources
from local_aws.batch import Batch
from local_aws.containers import Images, install_logs
from local_aws.control import Control
from local_aws.faults import Faults
from local_aws.iam import Iam
from local_aws.request import Request, Response, error_response, json_response
from local_aws.scheduler import Scheduler
from local_aws.sqs import Sqs


class Aws:
    """Every request goes through `answer`."""

    def __init__(self, endpoint, folder):
        self.applications = {}                   # moto's WSGI application of each service
        self.regions = set(boto3.Session().get_available_regions('sqs'))
        self.latency = 0.0                       # seconds by which each request is delayed
        self.faults = Faults()
        self.iam = Iam()
        self.images = Images(folder)
        self.sqs = Sqs(self.faults)
        self.scheduler = Scheduler(self.iam, endpoint, self.images, self.faults.random)
        self.endpoint = endpoint
        self.counts, self.counts_lock = {}, threading.Lock()
        self.control = Control(self)
        for part in (self.sqs, Batch(self.scheduler), cloudformation, resources):
            part.install()
        install_logs()
        self.scheduler.start()

    def answer(self, request):
        """The response to a request."""
        if request.path.startswith('/_local/'):
            return self.control.answer(request)
        try:
            self._count(request)
            time.sleep(self.latency)
            fault = self.faults.of_request(request)
            if fault and not fault[1]:
                raise fault[0]
            if request.region not in self.regions:
                raise AwsError('UnrecognizedClientException', f'There is no AWS region {request.region!r}.')
            self.iam.check_age(request)
            self.iam.check(request)
            cloudformation.check_capabilities(request)
            response = self._carry_out(request)
            if fault:
                raise fault[0]
            return response
        except AwsError as error:
            return error_response(request, error)

    def _count(self, request):
        who = 'workers' if request.access_key in self.iam.sessions else 'main'
        with self.counts_lock:
            operations = self.counts.setdefault(who, collections.Counter())
            operations[f'{request.service}:{request.operation}'] += 1

    def _carry_out(self, request):
        if request.operation == 'SimulatePrincipalPolicy':
            return Response(200, [('Content-Type', 'text/xml')], self.iam.simulate(request).encode())
        if request.operation == 'GetServiceQuota':           # one for all kinds of computers here
            quota = {'Value': min(self.scheduler.quota, 10_000.0), 'UsageMetric': {
                'MetricNamespace': 'AWS/Usage', 'MetricName': 'ResourceCount',
                'MetricDimensions': {'Type': 'Resource', 'Resource': 'vCPU'}}}
            return json_response({'Quota': {**request.parameters, **quota}})
        if request.operation == 'GetMetricStatistics':       # that metric; no point where nothing is used
            used = sum(fleet.used() for fleet in self.scheduler.fleets.values())
            point = {'Timestamp': time.time(), 'Maximum': used}
            if request.form:                                 # of an older botocore
                inner = ''.join(f'<{name}>{value}</{name}>' for name, value in point.items())
                return Response(200, [('Content-Type', 'text/xml')], (
                    '<GetMetricStatisticsResponse><GetMetricStatisticsResult><Datapoints>'
                    f'{used and "<member>" + inner + "</member>" or ""}</Datapoints>'
                    '</GetMetricStatisticsResult></GetMetricStatisticsResponse>').encode())
            return json_response({'Datapoints': [point] if used else []})
        if request.operation == 'GetSpotPlacementScores':
            return Response(200, [('Content-Type', 'text/xml')], b'<GetSpotPlacementScoresResponse>'
                            b'<spotPlacementScoreSet><item><score>9</score></item></spotPlacementScoreSet>'
                            b'</GetSpotPlacementScoresResponse>')
        answer = self.sqs.call(request) if request.service == 'sqs' else None
        if answer is not None:
            return json_response(answer)
        response = self._ask_moto(request)
        if response.status == 404:
            self.iam.check_missing(request)
        return response

    def _ask_moto(self, request):
        """Call moto's WSGI application of the service; moto's search for it costs more than most answers."""
        if request.service not in self.applications:
            self.applications[request.service] = create_backend_app(request.service)
        environ = create_environ(request.target, self.endpoint, method=request.method, data=request.body,
                                 headers=request.headers, multithread=True)
        parts, status, headers = run_wsgi_app(self.applications[request.service], environ)
        return Response(int(status.split()[0]), headers, b''.join(parts))


class Connection(http.server.BaseHTTPRequestHandler):
    """One client's connection, kept alive."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    rbufsize = 1 << 16

    def answer(self):
        """Answer one request."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get('content-length') or 0))
        if len(body) < int(headers.get('content-length') or 0):
            return                               # the client went away; half an object is none
        request = Request(self.command, self.path, headers, body, self.connection)
        try:
            response = self.server.aws.answer(request)
        except Exception:
            traceback.print_exc()
            response = error_response(
                request, AwsError('InternalFailure', traceback.format_exc(limit=-1), 500))
        control = request.path.startswith('/_local/')
        body = response.body if control else self.server.aws.faults.what_comes(response.body)
        self.close_connection = self.close_connection or body != response.body
        if body is None:
            return
        headers = {name.lower(): value for name, value in response.headers}
        headers.pop('connection', None)          # moto closes those of S3
        headers.setdefault('date', self.date_time_string())
        if self.command != 'HEAD' or 'content-length' not in headers:
            headers['content-length'] = len(response.body)
        self.send_response_only(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, *_):
        """Requests are counted, not logged."""


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection: enough for a few hundred long polls."""

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request, client_address):
        """A client that went away is no event."""


def serve(port_file):
    """Serve until SIGTERM, or until whoever started this is gone."""
    if os.getpid() != os.getpgid(0):             # a signal to local.sh's process group is not for us
        os.setsid()
    try:
        server = Server(('127.0.0.1', 0), Connection)
        socket.create_connection(server.server_address, 10).close()
    except OSError as error:
        sys.exit(f'it needs the loopback address 127.0.0.1, which this machine does not give ({error}).')
    endpoint = f'http://127.0.0.1:{server.server_address[1]}'
    server.aws = Aws(endpoint, os.path.dirname(os.path.abspath(port_file)))
    region = os.environ.get('RIOS_AWSBATCH_REGION', 'us-east-1')
    if region not in server.aws.regions:
        sys.exit(f'there is no AWS region {region!r}; set RIOS_AWSBATCH_REGION.')
    if not os.path.isdir(os.environ.get('RIOS_AWSBATCH_LOCAL_SHARED') or '/'):
        sys.exit('RIOS_AWSBATCH_LOCAL_SHARED names no folder.')
    print('Jobs see an empty disk of their own.' if disk.isolation() == 'namespace' else
          'Jobs have empty folders of their own, but see the files of this machine, which allows no mount '
          'namespace.', flush=True)
    stop, parent = threading.Event(), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open(port_file, 'w', encoding='ascii') as file:
        file.write(str(server.server_address[1]))
    while not stop.wait(1) and os.getppid() == parent:
        pass
    server.aws.scheduler.close()
    os._exit(0)                                  # long polls still wait in their threads
