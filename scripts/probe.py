"""Says what a Python has of what workers need: scripts/build.sh --from asks each that is in an image."""
import importlib
import importlib.metadata
import importlib.util
import sys

missing, pins = [], []
for name in 'osgeo.gdal_array', 'numpy', 'boto3', 'cloudpickle':
    try:
        importlib.import_module(name)
    except Exception:                   # what it was compiled for may be another version
        missing.append(name.partition('.')[0])
for name in 'numpy', 'boto3', 'botocore':
    if name in sys.modules:
        pins.append(f'{name}=={importlib.metadata.version(name)}')
cloudpickle = getattr(sys.modules.get('cloudpickle'), '__version__', '')
pip = 'pip' if importlib.util.find_spec('pip') else ''
print(len(missing), sys.executable, '%d.%d' % sys.version_info[:2], ' '.join(missing), ' '.join(pins),
      cloudpickle, pip, sep='|')
