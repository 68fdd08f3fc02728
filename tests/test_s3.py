"""
The data stays on S3: workers read and write there themselves, by examples/mosaic_s3.py and by RIOS.

The other examples are in test_examples.py, which buckets a stack may use in test_permissions.py.

RIOS_AWSBATCH_TEST_SCENES=38 makes the mosaic of 38 x 38 scenes, which is 1 GB, instead of a small one.
"""
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import numpy
import pytest
from osgeo import gdal
from osgeo_utils.samples import validate_cloud_optimized_geotiff

import rios_awsbatch
from tests.helpers import (
    EXAMPLES, PATIENCE, ROOT, SCENE, Stack, another_aws, local_aws, user_with_main_policy, wait_until, write_main)
from tests.test_pixels import assert_same_place, locate
from tests.rios_sources import every

import mosaic_s3    # one of the examples

gdal.UseExceptions()
SCENES = int(os.environ.get('RIOS_AWSBATCH_TEST_SCENES', 3))
BLOCKSIZE = 512 if SCENES < 10 else 2048


class Scientist:
    """
    An AWS of its own that enforces policies; a stack that may read one folder of a bucket and write another;
    a user who has the stack's policy for main scripts and may use these two folders.
    """

    def __init__(self, env, folder):
        self.folder, self.bucket = folder, 'mosaics'
        arn = 'arn:aws:s3:::' + self.bucket
        self.stack = Stack(
            env=env, ReadBuckets=arn + '/in', WriteBuckets=arn + '/out', ListBuckets=arn,
            ListPrefixes='in/*,out/*')
        self.s3 = self.stack.client('s3')
        place = {'LocationConstraint': rios_awsbatch.REGION}
        for name in (self.bucket, 'somebody-elses'):
            self.s3.create_bucket(Bucket=name, CreateBucketConfiguration=place)
        self.stack.create().push('BatchECR', ROOT / 'worker.py')
        self.env, user = user_with_main_policy(self.stack)
        self.env['PYTHONPATH'] = str(ROOT)
        iam = self.stack.client('iam')
        role, = [role['RoleName'] for role in iam.list_roles()['Roles'] if 'MainRole' in role['RoleName']]
        for name in iam.list_role_policies(RoleName=role)['PolicyNames']:
            document = iam.get_role_policy(RoleName=role, PolicyName=name)['PolicyDocument']
            iam.put_user_policy(
                UserName=user.rpartition('/')[2], PolicyName=name, PolicyDocument=json.dumps(document))
        local_aws('iam', {'enforced': True}, env=env)

    def upload(self, path, key):
        self.s3.upload_file(str(path), self.bucket, key)
        return 's3://{}/{}'.format(self.bucket, key)

    def objects(self, prefix):
        pages = self.s3.get_paginator('list_objects_v2').paginate(Bucket=self.bucket, Prefix=prefix)
        return [item['Key'] for page in pages for item in page.get('Contents', [])]

    def download(self, prefix):
        """All objects, into a local folder."""
        folder = self.folder / prefix.replace('/', '-')
        folder.mkdir()
        for key in self.objects(prefix):
            self.s3.download_file(self.bucket, key, str(folder / key.rpartition('/')[2]))
        return folder

    def run(self, script, *args):
        """Run a main script on this computer, to its end: what it prints."""
        return self._run(self.env, sys.executable, script, *args)

    def submit(self, script, *args, path=()):
        """Run a main script as a job, with what it imports in the folders of `path`: what it prints."""
        self.stack.push('BatchECRMain', script, 'PYTHONPATH=' + os.pathsep.join(map(str, path)))
        local_aws('iam', {'enforced': True}, env=self.stack.env)
        return self._run(self.stack.env, ROOT / 'scripts' / 'submit.sh', '--wait', '--', *args)

    @staticmethod
    def _run(env, *command):
        done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True,
                              timeout=PATIENCE * (1 if SCENES < 10 else 10))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def denials(self):
        """What was refused. To ask for an object that is not there counts as listing its bucket."""
        return [each for each in local_aws('iam', env=self.stack.env)['denials']
                if each['action'] != 's3:ListBucket']


@pytest.fixture(scope='module')
def scientist(tmp_path_factory):
    folder = tmp_path_factory.mktemp('s3')
    with another_aws(folder) as env:
        yield Scientist(env, folder)


@pytest.fixture(scope='module')
def mosaic(scientist):
    """A mosaic of images side by side, in tiles; their names."""
    scene = gdal.Open(str(SCENE))
    pixels = numpy.tile(scene.ReadAsArray(), (1, SCENES, 1))
    place, names = list(scene.GetGeoTransform()), []
    for number in range(SCENES):
        path = str(scientist.folder / 'column.tif')
        image = gdal.GetDriverByName('GTiff').Create(path, *pixels.shape[:0:-1], 6, gdal.GDT_Byte, [
            'TILED=YES', 'BLOCKXSIZE=512', 'BLOCKYSIZE=512', 'INTERLEAVE=BAND'])
        image.SetGeoTransform(place)
        image.SetSpatialRef(scene.GetSpatialRef())
        image.WriteArray(pixels)
        image = None
        place[0] += scene.RasterXSize * place[1]
        names.append(scientist.upload(path, 'in/{}.tif'.format(number)))
    return names


def assert_is_right(path):
    """The pixels are those that one process computes from the whole mosaic at once."""
    dataset, margin = gdal.Open(str(path)), mosaic_s3.MARGIN
    whole = numpy.tile(gdal.Open(str(SCENE)).ReadAsArray(), (1, SCENES, SCENES))
    assert (dataset.RasterYSize, dataset.RasterXSize) == whole.shape[1:]
    whole = numpy.pad(whole, [(0, 0), (margin, margin), (margin, margin)])
    for top in range(0, dataset.RasterYSize, 1000):
        rows = min(1000, dataset.RasterYSize - top)
        expected = mosaic_s3.compute(whole[:, top:top + rows + 2 * margin], red=3, nir=4)
        assert numpy.array_equal(dataset.ReadAsArray(0, top, dataset.RasterXSize, rows), expected)


def assert_is_cog(path):
    errors = validate_cloud_optimized_geotiff.validate(str(path), full_check=True)[:2]
    assert errors == ([], [])
    dataset = gdal.Open(str(path))
    band = dataset.GetRasterBand(1)
    smallest = band.GetOverview(band.GetOverviewCount() - 1)
    assert max(smallest.XSize, smallest.YSize) <= 512
    assert band.GetDescription() == mosaic_s3.BANDS[0] and band.GetNoDataValue() == mosaic_s3.NODATA
    pixels, mean = smallest.ReadAsArray(), band.ComputeStatistics(False)[2]
    assert pixels[pixels != mosaic_s3.NODATA].mean() == pytest.approx(mean, abs=0.02)


def quick_mosaic(folder, examples=EXAMPLES):
    """mosaic_s3.py with the quick settings of the tests."""
    return write_main(folder, '''
        sys.path.insert(0, {!r})
        import cloudpickle, mosaic_s3
        cloudpickle.register_pickle_by_value(mosaic_s3)
        mosaic_s3.main()
    '''.format(str(examples)))


def test_mosaic_is_that_of_one_process_with_workers_killed(scientist, mosaic, tmp_path):
    """Three times a worker is killed, when some more pieces are there; or once less, if they come too quickly."""
    killed, ended = [], threading.Event()

    def kill():
        for number in (1, 2, 3):
            wait_until(lambda: ended.is_set() or len(scientist.objects('out/killed/0')) >= number, PATIENCE)
            wait_until(lambda: ended.is_set() or kill_one())

    def kill_one():
        jobs = [job['pid'] for job in local_aws('jobs', env=scientist.stack.env)['jobs']]
        with contextlib.suppress(IndexError, ProcessLookupError):       # it has just gone by itself
            pid = random.choice(jobs)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return True
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        said = scientist.run(quick_mosaic(tmp_path), *mosaic, 's3://mosaics/out/killed/', '--workers', 4,
                             '--blocksize', BLOCKSIZE, '--cog')
    finally:
        ended.set()
        killer.join()
    blocks = len(scientist.objects('out/killed/0'))
    assert '{} blocks computed, 0 kept'.format(blocks) in said
    assert len(killed) >= 2 and scientist.denials() == []
    folder = scientist.download('out/killed/')
    assert len(list(folder.iterdir())) == blocks + 3      # mosaic.vrt, mosaic.tif, input.vrt
    assert_is_right(folder / 'mosaic.vrt')
    assert_is_right(folder / 'mosaic.tif')
    assert_is_cog(folder / 'mosaic.tif')
    for piece in folder.glob('0*.tif'):
        assert validate_cloud_optimized_geotiff.validate(str(piece))[:2] == ([], [])


def test_mosaic_as_a_job_is_that_of_one_process(scientist, mosaic):
    said = scientist.submit(
        EXAMPLES / 'mosaic_s3.py', *mosaic, 's3://mosaics/out/job', '--workers', 2, '--blocksize', BLOCKSIZE,
        '--cog', path=[EXAMPLES])
    assert 'blocks computed, 0 kept' in said and scientist.denials() == []
    folder = scientist.download('out/job/')
    assert_is_right(folder / 'mosaic.vrt')
    assert_is_right(folder / 'mosaic.tif')


def test_resume_keeps_what_the_same_input_function_and_parameters_have_made(scientist, tmp_path):
    key = 'in/changing.tif'
    scene = scientist.upload(SCENE, key)
    script = quick_mosaic(tmp_path)

    def made(*options):
        said = scientist.run(script, scene, 's3://mosaics/out/resumed', '--workers', 1, *options)
        return said.partition(': ')[2].rstrip() == '1 blocks computed, 0 kept'
    assert made()
    assert not made('--resume')
    assert made('--resume', '--red', 2)
    scientist.s3.put_object(Bucket=scientist.bucket, Key=key, Body=SCENE.read_bytes() + b'changed')
    assert made('--resume', '--red', 2)
    scientist.s3.delete_object(Bucket=scientist.bucket, Key=scientist.objects('out/resumed/0')[0])
    assert made('--resume', '--red', 2)
    changed = tmp_path / 'examples'
    shutil.copytree(EXAMPLES, changed, ignore=shutil.ignore_patterns('data'))
    text = (changed / 'mosaic_s3.py').read_text()
    (changed / 'mosaic_s3.py').write_text(text.replace('red + nir > 0', 'red + nir > 1', 1))
    script = quick_mosaic(tmp_path, changed)
    assert made('--resume', '--red', 2)


def in_one_process(whole):
    margin = mosaic_s3.MARGIN
    return mosaic_s3.compute(numpy.pad(whole.ReadAsArray(), [(0, 0), (margin, margin), (margin, margin)]), red=3, nir=4)


def test_mosaic_and_its_cog_are_where_the_ground_control_points_are(scientist, tmp_path):
    path = tiled(tmp_path / 'points.tif', 800)
    image = gdal.Open(str(path), gdal.GA_Update)
    locate(image, 'points and RPC')
    image = None
    scene, image = scientist.upload(path, 'in/points.tif'), gdal.Open(str(path))
    scientist.run(quick_mosaic(tmp_path), scene, 's3://mosaics/out/points', '--workers', 2, '--blocksize', 512, '--cog')
    folder = scientist.download('out/points/')
    for name in ('mosaic.vrt', 'mosaic.tif'):
        made = gdal.Open(str(folder / name))
        assert_same_place(made, image)
        assert numpy.array_equal(made.ReadAsArray(), in_one_process(image))
    assert_same_place(gdal.Open(str(folder / '0000512_0000512.tif')), image, 512, 512)
    assert_is_cog(folder / 'mosaic.tif')


def test_mosaic_of_different_resolutions_has_the_one_that_was_said(scientist, tmp_path):
    paths = [tmp_path / 'coarse.tif', tmp_path / 'fine.tif']
    scene = gdal.Open(str(SCENE))
    place = list(scene.GetGeoTransform())
    gdal.Translate(str(paths[0]), scene)
    place[0] += 100 * place[1]
    place[1], place[5] = place[1] / 2, place[5] / 2
    gdal.Translate(str(paths[1]), scene).SetGeoTransform(place)
    names = [scientist.upload(path, 'in/' + path.name) for path in paths]
    script, output = quick_mosaic(tmp_path), 's3://mosaics/out/two'
    scientist.run(script, *names, output, '--workers', 2, '--resolution', 'highest')
    made = gdal.Open(str(scientist.download('out/two/') / 'mosaic.vrt'))
    whole = gdal.BuildVRT('', list(map(str, paths)), resolution='highest')
    assert made.GetGeoTransform() == whole.GetGeoTransform() and made.GetGeoTransform()[1] == place[1]
    assert numpy.array_equal(made.ReadAsArray(), in_one_process(whole))


COUNTS = '''
    import json, socket
    class Counting(socket.socket):
        total = 0
        def sendall(self, data, *rest):
            Counting.total += memoryview(data).nbytes
            return super().sendall(data, *rest)
        def recv_into(self, *rest):
            count = super().recv_into(*rest)
            Counting.total += count
            return count
    socket.socket = Counting
    sys.path.insert(0, {!r})
    import cloudpickle, mosaic_s3, pieces_s3
    from osgeo import gdal
    gdal.SetConfigOption('CPL_VSIL_NETWORK_STATS_ENABLED', 'YES')
    pieces_s3.TILE, pieces_s3.OPTIONS[0] = 128, 'BLOCKSIZE=128'
    cloudpickle.register_pickle_by_value(mosaic_s3)
    mosaic_s3.main()
    by_gdal = json.loads(gdal.NetworkStatsGetAsSerializedJSON())['methods'].values()
    print(json.dumps([Counting.total, sum(each.get('downloaded_bytes', 0) + each.get('uploaded_bytes', 0)
                                          for each in by_gdal)]))
'''


def tiled(path, side):
    """An image of this many pixels on each side."""
    gdal.Translate(str(path), str(SCENE), width=side, height=side, creationOptions=['TILED=YES'])
    return path


def test_less_than_10_kb_of_a_block_travel_through_the_main_script(scientist, tmp_path):
    """In and out, by boto3 and by GDAL, start and end of the run included; its pixels are 230 kB."""
    scientist.upload(tiled(tmp_path / 'tiny.tif', 1024), 'in/tiny.tif')
    said = scientist.run(write_main(tmp_path, COUNTS.format(str(EXAMPLES))), 's3://mosaics/in/tiny.tif',
                         's3://mosaics/out/tiny', '--workers', 2, '--blocksize', 128).splitlines()
    assert said[0].endswith('64 blocks computed, 0 kept')
    by_boto3, by_gdal = json.loads(said[1])
    assert by_boto3 > 64 * 100 and by_gdal > 64 * 100      # they are counted
    assert by_boto3 + by_gdal < 64 * 10000


@every()
def test_rios_reads_and_writes_s3(source, scientist):
    """On this computer and as a job: the same pixels as from a file to a file."""
    script, scene = EXAMPLES / 'texture_rios.py', scientist.upload(SCENE, 'in/scene.tif')
    options = '--blocksize', 128, '--radius', 1, '--workers', 2
    folders = [*source.folders, ROOT]
    path = os.pathsep.join(map(str, folders))
    scientist.stack.push('BatchECR', ROOT / 'worker.py', 'PYTHONPATH=' + path)
    scientist.env['PYTHONPATH'] = path
    names = ['{}-{}.tif'.format(source.name, where) for where in ('here', 'job', 'serial')]
    scientist.run(script, scene, 's3://mosaics/out/rios/' + names[0], *options)
    scientist.submit(script, scene, 's3://mosaics/out/rios/' + names[1], *options, path=[*folders, EXAMPLES])
    subprocess.run(
        [sys.executable, script, SCENE, scientist.folder / names[2], *map(str, options), '--serial'],
        env=source.environment(), check=True, capture_output=True)
    for name in names[:2]:
        scientist.s3.download_file(scientist.bucket, 'out/rios/' + name, str(scientist.folder / name))
    here, job, serial = (gdal.Open(str(scientist.folder / name)).ReadAsArray() for name in names)
    assert serial.std() > 0
    assert numpy.array_equal(here, serial) and numpy.array_equal(job, serial)
    assert scientist.denials() == []


# ---------------------------------------------------------------------------------------------
# Paths that a worker cannot reach
# ---------------------------------------------------------------------------------------------

OPENS = '''
    import json, traceback
    from osgeo import gdal
    if sys.argv[1] == 'exceptions':
        gdal.UseExceptions()

    def columns(path):
        return gdal.Open(path).RasterXSize, gdal.GetUseExceptions()

    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        for path in sys.argv[2:]:
            try:
                print(json.dumps(executor.submit(columns, path).result()))
            except Exception as error:
                print(json.dumps(''.join(traceback.format_exception(error))))
'''


def opened(scientist, tmp_path, exceptions, *paths):
    lines = scientist.run(write_main(tmp_path, OPENS), exceptions, *paths).splitlines()
    assert len(lines) == len(paths)
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize('exceptions', ['exceptions', 'none'])
def test_gdal_in_a_worker_raises_exceptions_as_in_the_main_script(exceptions, scientist, tmp_path):
    scientist.upload(SCENE, 'in/scene.tif')
    answer, = opened(scientist, tmp_path, exceptions, '/vsis3/mosaics/in/scene.tif')
    assert answer == [349, 1 if exceptions == 'exceptions' else 0]


@pytest.mark.parametrize('path, advice', [
    ('/vsis3/mosaics/in/nosuch.tif', 'the name is wrong'),
    ('/vsis3/somebody-elses/scene.tif', '--readbucket'),
    ('/home/ann/images/scene.tif', '/vsis3/'), ('scene.tif', '/vsis3/')])
def test_path_that_a_worker_cannot_reach_is_a_sentence(path, advice, scientist, tmp_path):
    """It names the path, says that the worker has no such file, and what to do."""
    said, = opened(scientist, tmp_path, 'exceptions', path)
    assert path.replace('/vsis3/', '') in said and 'The worker ' in said, said
    assert advice.lower() in said.lower(), said
