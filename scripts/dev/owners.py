#!/usr/bin/env python3
"""
Who owns what: the classes of Python files, and which methods change each attribute.

    scripts/dev/owners.py rios_awsbatch.py worker.py
    scripts/dev/owners.py --goal rios_awsbatch.py worker.py     exit status 1 where a goal is missed

An attribute is what methods assign on self, or the class declares with a type. The methods that assign it
come first; behind a ~ those that only change what it holds (append, discard, an item). "Reaches into" are
private names of anything but self and cls, "changes of others" what is assigned to their attributes. The
goals: at most 20 attributes in a class, and no private name that one of the files uses of another.
"""
import argparse
import ast
import collections
import pathlib
import sys

MOST = 20
MUTATORS = set('add append appendleft clear difference_update discard extend extendleft insert pop popitem '
               'popleft put remove reverse set setdefault sort update'.split())
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def is_private(name):
    return name.startswith('_') and not name.endswith('__')


def is_changed(node):
    return isinstance(getattr(node, 'ctx', None), (ast.Store, ast.Del))


def of_self(node):
    """The name of an attribute of self; None for anything else."""
    return node.attr if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'self' else None


class Class:
    """A class: its methods, and by attribute which of them assign it and which change what it holds."""
    def __init__(self, node):
        self.name, self.lines = node.name, node.end_lineno - node.lineno + 1
        self.methods = [each for each in node.body if isinstance(each, FUNCTIONS)]
        self.assigned, self.mutated = collections.defaultdict(dict), collections.defaultdict(dict)
        for each in node.body:
            if isinstance(each, ast.AnnAssign):
                self.assigned[ast.unparse(each.target)]['(declared)'] = True
        for method in self.methods:
            for each in ast.walk(method):
                self.look(each, method.name)

    def look(self, node, method):
        if of_self(node) and is_changed(node):
            self.assigned[node.attr][method] = True
        elif isinstance(node, ast.Subscript) and is_changed(node) or getattr(node, 'attr', None) in MUTATORS:
            if of_self(node.value):
                self.mutated[node.value.attr][method] = True

    def show(self):
        print(f'\n  {self.name}{" (!)" * (len(self.assigned) > MOST)}: {self.lines} lines, '
              f'{len(self.assigned)} attributes, {len(self.methods)} methods')
        for name, methods in self.assigned.items():
            inside = ', '.join(each for each in self.mutated[name] if each not in methods)
            print(f'    {name:<16} {", ".join(methods)}{" ~ " * bool(inside)}{inside}')


class File:
    """A file: its classes, and where it touches what is not its own (text to line numbers)."""
    def __init__(self, path, ours):
        text = path.read_text()
        nodes = list(ast.walk(ast.parse(text, str(path))))
        self.path, self.lines = path, text.count('\n')
        self.classes = [Class(node) for node in nodes if isinstance(node, ast.ClassDef)]
        self.crosses, self.reaches, self.others = (collections.defaultdict(list) for _ in range(3))
        modules = {}                    # by what they are called here
        for node in nodes:
            for each in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                modules[each.asname or each.name] = each.name.rpartition('.')[2]
                source = (getattr(node, 'module', None) or '').rpartition('.')[2]
                if is_private(each.name) and source in ours:
                    self.crosses[f'{source}.{each.name}'].append(node.lineno)
        for node in nodes:
            value = ast.unparse(node.value) if isinstance(node, ast.Attribute) else 'self'
            if value not in ('self', 'cls', 'super()') and (is_private(node.attr) or is_changed(node)):
                found = self.others if not is_private(node.attr) else (
                    self.crosses if modules.get(value) in ours - {path.stem} else self.reaches)
                found[f'{value}.{node.attr}'].append(node.lineno)

    def show(self):
        print(f'{self.path}: {self.lines} lines, {len(self.classes)} classes')
        for each in self.classes:
            each.show()
        for title, found in (('private names of other files', self.crosses), ('reaches into', self.reaches),
                             ('changes of others', self.others)):
            print(f'\n  {title}: {len(found)}')
            for text, lines in found.items():
                print(f'    {text:<40} line {", ".join(map(str, lines))}')
        print()


def main():
    parser = argparse.ArgumentParser(description='See the head of this file.')
    parser.add_argument('--goal', action='store_true', help='exit status 1 where a goal is missed')
    parser.add_argument('files', nargs='+', type=pathlib.Path)
    given = parser.parse_args()
    files = [File(path, {path.stem for path in given.files}) for path in given.files]
    for file in files:
        file.show()
    large = [f'{each.name} ({len(each.assigned)})' for file in files for each in file.classes
             if len(each.assigned) > MOST]
    crosses = [text for file in files for text in file.crosses]
    print(f'More than {MOST} attributes: {", ".join(large) or "none"}. '
          f'Private names across files: {", ".join(crosses) or "none"}.')
    return int(given.goal and bool(large or crosses))


if __name__ == '__main__':
    sys.exit(main())
