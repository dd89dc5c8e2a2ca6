"""What of a plain dump is restored, and what is refused."""

from __future__ import annotations

import pytest

from hostctl.dump_filter import DumpFilter
from hostctl.settings import ReleaseError


def filtered(text: str, **options: object) -> str:
    made = DumpFilter(**options)
    return b"".join(made.filter(text.encode().splitlines(keepends=True))).decode()


def statements(text: str, **options: object) -> list[str]:
    return [line for line in filtered(text, **options).splitlines() if line.strip()]


LEFT_OUT = [
    "ALTER TABLE public.plant OWNER TO postgres;",
    'ALTER FUNCTION public.f(a integer, b text) OWNER TO "Old User";',
    "ALTER LARGE OBJECT 17 OWNER TO olduser;",
    "GRANT SELECT ON TABLE public.plant TO olduser;",
    "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
    "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT ALL ON TABLES  TO olduser;",
    "SET ROLE olduser;",
    "set role = olduser;",
    "SET SESSION AUTHORIZATION 'olduser';",
    "SET transaction_timeout = 0;",
    "SET default_tablespace = fast;",
    "CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;",
    "COMMENT ON EXTENSION citext IS 'data type';",
    "CREATE SCHEMA public;",
    "DROP TABLE IF EXISTS public.plant;",
    "ALTER TABLE IF EXISTS ONLY public.plant DROP CONSTRAINT IF EXISTS plant_pkey;",
    "ALTER TABLE public.plant ALTER COLUMN id DROP DEFAULT;",
    "CREATE DATABASE olddb WITH TEMPLATE = template0 ENCODING = 'UTF8';",
    "ALTER DATABASE olddb OWNER TO olduser;",
    "CREATE EVENT TRIGGER audit ON ddl_command_end EXECUTE FUNCTION public.audit();",
    "CREATE PUBLICATION everything FOR ALL TABLES;",
    "ALTER ROLE olduser IN DATABASE olddb SET work_mem TO '8MB';",
    "\\connect olddb",
    "\\restrict AbC123",
    "\\unrestrict AbC123",
]
KEPT = [
    "SET statement_timeout = 0;",
    "SET default_tablespace = '';",
    "SELECT pg_catalog.set_config('search_path', '', false);",
    "CREATE SCHEMA stock;",
    "COMMENT ON SCHEMA public IS 'standard public schema';",
    "ALTER TABLE ONLY public.plant ADD CONSTRAINT plant_pkey PRIMARY KEY (id);",
    "ALTER TABLE ONLY public.plant ALTER COLUMN id SET DEFAULT nextval('public.plant_id_seq'::regclass);",
    "ALTER TABLE public.plant ADD CONSTRAINT odd CHECK ((name <> ' DROP CONSTRAINT; OWNER TO x;'::text));",
    "INSERT INTO public.plant VALUES (1, 'it''s; GRANT ALL ON x TO y;\\');",
    "INSERT INTO public.plant VALUES (1, E'it\\'s; GRANT ALL ON x TO y;');",
    'CREATE TABLE public."GRANT; x" (id integer);',
    "ALTER SEQUENCE public.plant_id_seq OWNED BY public.plant.id;",
    "CREATE USER MAPPING FOR shop_owner SERVER other;",
]


@pytest.mark.parametrize("text", LEFT_OUT)
def test_what_belongs_to_the_other_server_is_left_out(text: str) -> None:
    made = DumpFilter(known={"statement_timeout", "default_tablespace"})
    lines = [b"--\n", b"-- Name: x; Owner: olduser\n", text.encode() + b"\n", b"SELECT 1;\n"]
    kept = b"".join(made.filter(lines))
    assert kept == b"--\n-- Name: x; Owner: olduser\n\nSELECT 1;\n"
    assert sum(made.left_out.values()) == (0 if text.startswith("\\") else 1)


@pytest.mark.parametrize("text", KEPT)
def test_everything_else_is_kept(text: str) -> None:
    assert filtered(f"{text}\n", known={"statement_timeout", "default_tablespace"}) == f"{text}\n"


def test_numbers_of_lines_stay() -> None:
    text = "GRANT SELECT\n  ON TABLE public.plant\n  TO olduser;\nSELECT 1;\n"
    assert filtered(text) == "\n\n\nSELECT 1;\n"


def test_rows_of_copy_pass_unchanged() -> None:
    rows = "1\tGRANT ALL ON x TO y;\n2\t\\\\! touch /tmp/x\n3\t$$ ' \"\n4\t\\N\n\\.\n"
    text = f'COPY public.plant (id, "a, b") FROM stdin;\n{rows}\nGRANT ALL ON x TO y;\nSELECT 1;\n'
    assert filtered(text) == text.replace("GRANT ALL ON x TO y;\nSELECT", "\nSELECT")


def test_a_copy_statement_of_many_columns_is_recognized() -> None:
    columns = ", ".join(f"column_{number}" for number in range(1000))
    text = f"COPY public.wide ({columns}) FROM stdin;\n\\! no command\n\\.\n"
    assert filtered(text) == text


@pytest.mark.parametrize("tag", ["$$", "$_$", "$body$"])
def test_bodies_of_functions_pass_unchanged(tag: str) -> None:
    body = f"CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS {tag}\nBEGIN\n  GRANT x TO y;\n  -- it's\n"
    text = f"{body}\\! no command\n  EXECUTE 'DROP TABLE z';\nEND{tag};\nSELECT 1;\n"
    assert filtered(text) == text


def test_literals_and_comments_of_several_lines_pass_unchanged() -> None:
    text = "COMMENT ON TABLE plant IS 'first;\nGRANT x TO y;\n\\! no command\n';\n/* a /* b;\n */ ' \n*/ SELECT 1;\n"
    assert filtered(text) == text


def test_old_dumps_escape_by_backslash() -> None:
    text = "SET standard_conforming_strings = off;\nINSERT INTO plant VALUES ('it\\'s; GRANT x TO y;');\nSELECT 1;\n"
    assert filtered(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\\! touch /tmp/x\n",
        "\\copy plant FROM PROGRAM 'id'\n",
        "SELECT 1 \\! id\n",
        "SELECT 1; \\! id\n",
        "SELECT '\n' \\! id\n",
        "  \\! id\n",
        "COPY plant /* x */ FROM stdin; SELECT 1;\n",
    ],
)
def test_commands_of_psql_are_refused(text: str) -> None:
    with pytest.raises(ReleaseError, match=r"Line \d of the dump has .*, which is not pg_dump's"):
        filtered(text)


@pytest.mark.parametrize(
    "text", ["CREATE ROLE olduser;\n", "CREATE USER olduser;\n", "\\connect one\nSELECT 1;\n\\connect two\n"]
)
def test_a_dump_of_all_databases_is_refused(text: str) -> None:
    with pytest.raises(ReleaseError, match="pg_dumpall"):
        filtered(text)


@pytest.mark.parametrize(
    "text", ["COPY public.plant (id) FROM stdin;\n1\n2\n", "CREATE TABLE plant (\n", "SELECT 'x\n"]
)
def test_a_cut_dump_is_refused(text: str) -> None:
    with pytest.raises(ReleaseError, match="not complete"):
        filtered(text)


def test_extensions_and_tables_are_found() -> None:
    made = DumpFilter()
    text = (
        "CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;\nCREATE EXTENSION hstore;\n"
        'CREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA "Tools";\nCREATE TABLE plant (\n    id integer\n);\n'
        "--\n-- PostgreSQL database dump complete\n--\n"
    )
    list(made.filter(text.encode().splitlines(keepends=True)))
    assert made.extensions == {"citext": "public", "hstore": "public", "uuid-ossp": "Tools"}
    assert made.tables == 1
    assert made.is_complete
    assert made.size == len(text)


def test_schemas_of_extensions_exist_already() -> None:
    assert statements("CREATE SCHEMA tools;\nCREATE SCHEMA stock;\n", schemas={"public", "tools"}) == [
        "CREATE SCHEMA stock;"
    ]
