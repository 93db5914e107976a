import sys
from dispatch import log
from dispatch.settings import load
def main():
    s=load(); log.configure(s.local.log_level)
    if sys.argv[1]=='serve':
        from dispatch.service.server import serve; serve(s)
    elif sys.argv[1]=='ingress':
        from dispatch.ingress.main import run; run(s)
    elif sys.argv[1]=='demo':
        from dispatch.cli.demo import run; run()
    elif sys.argv[1]=='up':
        from dispatch.cli.up import run; run(s)
main()
