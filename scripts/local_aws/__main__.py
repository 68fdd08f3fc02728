"""The two programs of this package: the server, and `push`."""
import os
import sys

# This file's folder would hide modules of others (json, request); the package is found from the folder above.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def serve(port_file):
    """Serve until SIGTERM."""
    from local_aws import lean
    with lean.imports():
        from local_aws import front
    front.serve(port_file)


def push(output, path, *variables):
    """Put an image into a repository of $RIOS_AWSBATCH_STACK."""
    import boto3
    from local_aws import push
    session = boto3.Session(region_name=os.environ['RIOS_AWSBATCH_REGION'])
    push.push(session.client, os.environ['AWS_ENDPOINT_URL'], os.environ['RIOS_AWSBATCH_STACK'], output, path,
              *variables)


if __name__ == '__main__':
    {'serve': serve, 'push': push}[sys.argv[1]](*sys.argv[2:])
