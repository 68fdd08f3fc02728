"""The two programs of this package: the server, and `push`."""
import json
import os
import sys
import urllib.request

# This file's folder would hide modules of others (json, request); the package is found from the folder above.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def serve(port_file):
    """Serve until SIGTERM."""
    from local_aws import lean
    with lean.imports():
        from local_aws import front
    front.serve(port_file)


def push(output, path, *variables):
    """Put an image `latest` whose entry point is that file into ECR: what `docker push` leaves there."""
    import boto3
    session = boto3.Session(region_name=os.environ['RIOS_AWSBATCH_REGION'])
    stacks = session.client('cloudformation').describe_stacks(StackName=os.environ['RIOS_AWSBATCH_STACK'])
    outputs = {item['OutputKey']: item['OutputValue'] for item in stacks['Stacks'][0]['Outputs']}
    image = {'path': os.path.abspath(path), 'variables': dict(item.split('=', 1) for item in variables)}
    control = os.environ['AWS_ENDPOINT_URL'] + '/_local/images'
    with urllib.request.urlopen(control, json.dumps(image).encode()) as answer:
        made = json.load(answer)
    manifest = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
                'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', 'size': 0,
                           'digest': made['digest']}, 'layers': [], 'annotations': made['annotations']}
    session.client('ecr').put_image(repositoryName=outputs[output].rpartition('/')[2], imageTag='latest',
                                    imageManifest=json.dumps(manifest))


if __name__ == '__main__':
    {'serve': serve, 'push': push}[sys.argv[1]](*sys.argv[2:])
