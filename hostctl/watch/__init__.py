"""What a timer does every minute: run the doctor's checks, keep a history, write the status page, send alerts."""
