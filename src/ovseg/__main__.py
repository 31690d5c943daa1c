from ovseg.cli.main import main

main()
