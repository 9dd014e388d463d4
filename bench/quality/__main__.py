from quality.experiment import main

if __name__ == "__main__":
    main()
