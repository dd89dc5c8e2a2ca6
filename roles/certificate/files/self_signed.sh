# self_signed.sh check|keep DIRECTORY NAME...
# Keeps DIRECTORY/{fullchain,privkey}.pem: for exactly these names, of one key pair, and with 30 days to go.
# Prints what it changes (keep) or would change (check), and nothing where all is well.
set -eu

mode=$1 directory=$2
shift 2
subject=$1
days_valid=397
seconds_to_go=$((30 * 24 * 3600))
certificate=$directory/fullchain.pem
key=$directory/privkey.pem

names=
for name; do
    case $name in
        *:*) kind=IP ;;
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
    esac
    names=$names${names:+,}$kind:$name
done

complaint() {
    [ -s "$certificate" ] && [ -s "$key" ] || { echo "there is none"; return; }
    openssl x509 -in "$certificate" -noout -checkend "$seconds_to_go" >/dev/null || { echo "it expires within 30 days"; return; }
    [ "$(openssl x509 -in "$certificate" -noout -pubkey)" = "$(openssl pkey -in "$key" -pubout)" ] ||
        { echo "it belongs to another key"; return; }
    [ "$(cat "$directory/names" 2>/dev/null)" = "$names" ] || echo "its names were others"
}

reason=$(complaint)
[ -n "$reason" ] || exit 0
if [ "$mode" = check ]; then
    echo "would make a self-signed certificate for $names: $reason"
    exit 0
fi

umask 077
install -d -m 0755 "$directory"
openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days "$days_valid" \
    -subj "/CN=$subject" -addext "subjectAltName=$names" -addext "basicConstraints=critical,CA:FALSE" \
    -addext "keyUsage=critical,digitalSignature" -addext "extendedKeyUsage=serverAuth" \
    -keyout "$key.new" -out "$certificate.new" 2>/dev/null
chmod 0644 "$certificate.new"
mv "$key.new" "$key"
mv "$certificate.new" "$certificate"
(umask 022 && echo "$names" >"$directory/names")
echo "made a self-signed certificate for $names: $reason"
