"""For the tests of pages: what is in one, and that it needs nothing else."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text by tag."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'link', 'img'):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # and so every tag is closed

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_self_contained(text: str) -> None:
    found = Page(text)
    assert not found.open and not found.all('script') and not found.all('iframe')
    for tag, attributes in found.tags:
        assert not any(name.startswith('on') for name in attributes)
        for name in ('src', 'href', 'srcset', 'data', 'action'):
            value = attributes.get(name) or ''
            assert value.startswith('data:') or re.fullmatch(r'(#section-\d+)?', value), (tag, name, value)
    assert 'url(' not in text and '@import' not in text
    images = found.all('img')
    assert images and all((i['src'] or '').startswith('data:image/png;base64,') for i in images)
    assert all(len(i['alt'] or '') > 20 for i in images)
