"""
README and docs: no link leads nowhere, no option or variable is named that is not there, and the longer pieces of Python
do what is said of them. The smallest script, which the README has too, is in test_examples.py.
"""
import os
import pathlib
import re
import subprocess
import sys

import numpy
import pytest
from osgeo import gdal

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'examples' / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
SOURCES = '\n'.join(path.read_text() for pattern in ('*.py', 'scripts/*.sh', 'scripts/dev/*.*', 'examples/*.py')
                    for path in ROOT.glob(pattern))
every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """What a heading is called in a link, as GitHub does it."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)', text, re.M)}


@every_page
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
    for link in links:
        if '://' not in link:
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    assert links or page.parent.name != 'docs'


@every_page
def test_every_option_variable_and_file_is_there(page):
    text = page.read_text().replace('aws logs tail /rios_awsbatch/RIOS --follow', '')
    for name in re.findall(r'RIOS_[A-Z_]+', text) + re.findall(r'(?<![\w-])--[a-z][a-z0-9]+', text):
        assert re.search(re.escape(name) + r'\b', SOURCES), name
    for name in re.findall(r'\b(?:scripts|examples|tests)/[\w/]+\.(?:sh|py|ipynb)', text):
        assert (ROOT / name).exists(), name


def test_readme_is_read_to_its_end():
    assert (ROOT / 'README.md').read_text().count('\n') <= 220


def test_no_sentence_is_said_twice():
    """What is said twice is mended once."""
    seen = {}
    for page in PAGES:
        text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
        for sentence in re.split(r'(?<=[.:])\s+|\n\n|\n\|', text):
            sentence = ' '.join(sentence.split())
            if len(sentence) > 60:
                assert sentence not in seen, (page.name, seen[sentence], sentence)
                seen[sentence] = page.name


# ---------------------------------------------------------------------------------------------
# Pieces of Python, in a script
# ---------------------------------------------------------------------------------------------

def code(page, first):
    """The piece of Python on a page that begins so."""
    return re.search(r'^```python\n({}.*?)^```'.format(re.escape(first)), (ROOT / page).read_text(), re.M | re.S).group(1)


def run(tmp_path, text, *args):
    """What a script prints that has rios_awsbatch.py and the examples beside it."""
    (tmp_path / 'main.py').write_text(text)
    done = subprocess.run(
        [sys.executable, 'main.py', *map(str, args)], capture_output=True, text=True, timeout=270, cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH='{}:{}'.format(ROOT, ROOT / 'examples')))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_model_and_two_inputs_of_the_readme_reach_the_workers(tmp_path):
    before = ('import io, math, operator, pathlib, pickle, types\nimport rios_awsbatch\n'
              'pathlib.Path("model.pkl").write_bytes(pickle.dumps(types.SimpleNamespace(predict=math.sqrt)))\n'
              'features, blocks_before, blocks_after = operator.sub, [9, 25, 49], [0, 9, 0]\n')
    told = run(tmp_path, before + code('README.md', 'model = None') + '    print(list(results))\n')
    assert told == '[3.0, 4.0, 7.0]\n'


def test_what_does_not_travel_is_set_by_the_initializer_of_the_docs(tmp_path):
    before = 'import numpy as np\nfrom osgeo import gdal\nimport rios_awsbatch\n'
    see = ('    def see():\n        return np.geterr()["divide"], gdal.GetConfigOption("AWS_REQUEST_PAYER")\n'
           '    print(see(), executor.submit(see).result())\n')
    told = run(tmp_path, before + code('docs/how-it-works.md', 'def prepare') + see)
    assert told == "('warn', None) ('raise', 'requester')\n"


def test_pieces_of_the_docs_are_kept_when_a_run_is_interrupted(tmp_path):
    script = (ROOT / 'examples' / 'smallest_gdal.py').read_text()
    pieces = code('docs/large-images.md', "    os.makedirs('pieces'")
    script = 'import os\n' + script[:script.index('    with ')] + pieces.replace('np.save', 'save')
    stop = 'def save(name, pixels):\n    np.save(name, pixels)\n    {}\n\n\nif __name__'
    scene = ROOT / 'examples' / 'data' / 'landsat7_olinda.tif'
    with pytest.raises(AssertionError, match='KeyboardInterrupt'):
        run(tmp_path, script.replace('if __name__', stop.format(
            "if os.path.exists('pieces/256_0.npy'):\n        raise KeyboardInterrupt")), scene, 'part.tif')
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'pieces').iterdir()}
    assert sorted(kept) == ['0_0.npy', '256_0.npy']
    run(tmp_path, script.replace('if __name__', stop.format('pass')), scene, 'whole.tif')
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'pieces').iterdir()}
    assert len(now) == 4 and kept.items() <= now.items()
    run(tmp_path, (ROOT / 'examples' / 'smallest_gdal.py').read_text(), scene, 'once.tif')
    pixels = [gdal.Open(str(tmp_path / name)).ReadAsArray() for name in ('whole.tif', 'once.tif')]
    assert numpy.array_equal(*pixels)
