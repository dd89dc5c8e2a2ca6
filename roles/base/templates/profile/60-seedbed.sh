# {{ ansible_managed }}
# For people's shells: what they make is not for everybody to read, and a forgotten terminal closes after an hour.
umask 027
ulimit -c 0
readonly TMOUT=3600
export TMOUT
