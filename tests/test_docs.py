"""
README and docs: no link leads nowhere, and no option or variable is named that is not there.
"""
import pathlib
import re

import pytest

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
