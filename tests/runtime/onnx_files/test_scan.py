"""The scan of ONNX bytes: external data wherever a tensor can stand, nothing but ONNX, bounded whatever comes."""

import contextlib
import itertools
import time

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, SparseTensorProto, TensorProto, TrainingInfoProto, helper, numpy_helper

from edgekiln.runtime.errors import EngineError, ExitCode
from edgekiln.runtime.onnx_files import scan as onnx_scan
from edgekiln.runtime.onnx_files import wire as onnx_wire
from edgekiln.runtime.onnx_files.operators import MINIMUM_INPUTS
from edgekiln.runtime.onnx_files.scan import MAX_DEPTH, MAX_NODES, MAX_SUBGRAPHS, ONNX_DOMAINS, check_onnx

EXTERNAL = "is kept in another file"


def inside(name="inner"):
    return numpy_helper.from_array(np.ones(2, np.float32), name)


def outside(name="inner"):
    tensor = inside(name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def graph_of(*nodes, initializers=()):
    return helper.make_graph(list(nodes), "g", [], [], list(initializers))


def model_of(graph, **parts):
    return helper.make_model(graph, **parts)


def attribute(kind, field, *values):
    made = AttributeProto(name="value", type=kind)
    target = getattr(made, field)
    if values and hasattr(target, "extend"):
        target.extend(values)
    else:
        target.CopyFrom(values[0])
    return made


def node_with(made):
    node = helper.make_node("Anything", [], ["out"])
    node.attribute.append(made)
    return node


def sparse(values, indices):
    return SparseTensorProto(values=values, indices=indices, dims=[2])


def in_initializer(tensor):
    return model_of(graph_of(initializers=[inside("first"), tensor]))


def in_attribute(tensor):
    return model_of(graph_of(node_with(attribute(AttributeProto.TENSOR, "t", tensor))))


def in_attribute_list(tensor):
    return model_of(graph_of(node_with(attribute(AttributeProto.TENSORS, "tensors", inside(), tensor))))


def in_subgraph(tensor):
    inner = graph_of(initializers=[tensor])
    for _ in range(5):
        inner = graph_of(node_with(attribute(AttributeProto.GRAPH, "g", inner)))
    return model_of(inner)


def in_subgraph_list(tensor):
    inner = graph_of(initializers=[tensor])
    return model_of(graph_of(node_with(attribute(AttributeProto.GRAPHS, "graphs", graph_of(), inner))))


def in_sparse_initializer_values(tensor):
    graph = graph_of()
    graph.sparse_initializer.append(sparse(tensor, inside()))
    return model_of(graph)


def in_sparse_initializer_indices(tensor):
    graph = graph_of()
    graph.sparse_initializer.append(sparse(inside(), tensor))
    return model_of(graph)


def in_sparse_attribute(tensor):
    made = attribute(AttributeProto.SPARSE_TENSOR, "sparse_tensor", sparse(tensor, inside()))
    return model_of(graph_of(node_with(made)))


def in_sparse_attribute_list(tensor):
    made = attribute(AttributeProto.SPARSE_TENSORS, "sparse_tensors", sparse(tensor, inside()))
    return model_of(graph_of(node_with(made)))


def in_function(tensor):
    node = node_with(attribute(AttributeProto.TENSOR, "t", tensor))
    function = helper.make_function("d", "f", [], ["out"], [node], [helper.make_opsetid("", 18)])
    return model_of(graph_of(), functions=[function])


def in_function_default(tensor):
    function = helper.make_function("d", "f", [], [], [], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(attribute(AttributeProto.TENSOR, "t", tensor))
    return model_of(graph_of(), functions=[function])


def in_training_initialization(tensor):
    made = model_of(graph_of())
    made.training_info.append(TrainingInfoProto(initialization=graph_of(initializers=[tensor])))
    return made


def in_training_algorithm(tensor):
    made = model_of(graph_of())
    made.training_info.append(TrainingInfoProto(algorithm=graph_of(initializers=[tensor])))
    return made


PLACES = [value for name, value in list(globals().items()) if name.startswith("in_")]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_external_data_is_found_wherever_a_tensor_can_stand(place):
    check_onnx(place(inside()).SerializeToString())
    with pytest.raises(EngineError, match=rf"'inner' of the model {EXTERNAL}") as caught:
        check_onnx(place(outside()).SerializeToString())
    assert caught.value.exit_code == ExitCode.UNTRUSTED == 4
    assert "passwd" not in str(caught.value)


def test_every_field_of_onnx_that_leads_to_a_tensor_is_walked():
    """Against the descriptors of the installed onnx: a place that a later version adds shows here."""
    leads, grown = {"TensorProto"}, True
    messages = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    while grown:
        found = {
            n
            for n, m in messages.items()
            if any(f.message_type and f.message_type.name in leads for f in m.fields)
        }
        grown, leads = not found <= leads, leads | found
    wanted = {
        name: {
            f.number: f.message_type.name
            for f in messages[name].fields
            if f.message_type and f.message_type.name in leads
        }
        for name in leads
    }
    assert wanted == onnx_scan._CHILDREN


def test_either_sign_of_external_data_is_enough():
    place, location = inside(), inside()
    place.data_location = TensorProto.EXTERNAL
    location.external_data.add(key="location", value="x")
    for tensor in (place, location):
        with pytest.raises(EngineError, match=EXTERNAL):
            check_onnx(in_initializer(tensor).SerializeToString())


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def model_bytes(graph):
    return b"\x08\x0a" + field(7, graph)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (b"\x70\x01", EXTERNAL),  # field 14, varint 1
        (b"\xf0\x80\x00\x01", EXTERNAL),  # the same tag in more bytes than it needs
        (b"\x70\x81\x80\x80\x80\x10", EXTERNAL),  # 2^32 + 1: an int32 to a parser, so 1
        (b"\x70\x00\x70\x01", EXTERNAL),  # the last one counts
        (b"\x70\x01\x70\x00", EXTERNAL),
        (b"\xf0\x80\x80\x80\x10\x01", "has the number"),  # a tag of over 32 bits, which some parsers cut
        (b"\x70", "ends in the middle of a number"),
        (b"\x70" + b"\xff" * 10, "over ten bytes"),
        (b"\x6a\x05ab", "ends in the middle of a field"),
        (b"\x6b\x6c", "wire type 3"),  # a group
        (b"\x01", "has the number 0"),
        (b"\x69\x00", "ends in the middle of a field"),  # eight bytes were promised
    ],
)
def test_bytes_that_parsers_could_read_in_two_ways_are_refused(tensor, message):
    check_onnx(model_bytes(field(5, b"\x70\x00")))
    with pytest.raises(EngineError, match=message):
        check_onnx(model_bytes(field(5, tensor)))


def test_a_message_in_two_parts_is_searched_in_both():
    # protobuf merges a second occurrence of a message into the first.
    with pytest.raises(EngineError, match=EXTERNAL):
        check_onnx(model_bytes(b"") + field(7, field(5, b"\x70\x01")))


def test_a_known_message_field_of_another_type_is_refused():
    with pytest.raises(EngineError, match="field 5 of a GraphProto has wire type 0"):
        check_onnx(model_bytes(b"\x28\x01"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        bytes(100),
        b"<?xml version='1.0'?><net/>",
        b"\x08\x0a",
        field(7, b""),
        b"PK\x03\x04" + bytes(50),
    ],
    ids=["empty", "garbage", "zeros", "xml", "no-graph", "no-version", "zip"],
)
def test_what_is_no_onnx_model_is_refused(data):
    with pytest.raises(EngineError, match="This is no ONNX model: ") as caught:
        check_onnx(data)
    assert caught.value.exit_code == 4


def nested(levels):
    """A graph in an attribute of a node of a graph, and so on: three messages a level."""
    graph = b""
    for _ in range(levels):
        graph = field(1, field(4, b"Constant") + field(5, field(6, graph)))
    return model_bytes(graph)


def test_depth_is_bounded(monkeypatch):
    with pytest.raises(EngineError, match=f"graphs are nested more than {MAX_SUBGRAPHS} deep"):
        check_onnx(nested(20_000))
    monkeypatch.setattr(onnx_scan, "MAX_SUBGRAPHS", 10**6)
    check_onnx(nested((MAX_DEPTH - 2) // 3))
    for levels in (MAX_DEPTH // 3 + 1, 20_000):
        with pytest.raises(EngineError, match=f"messages are nested more than {MAX_DEPTH} deep"):
            check_onnx(nested(levels))


def test_the_number_of_bytes_is_bounded(monkeypatch, mean_model):
    monkeypatch.setattr(onnx_scan, "MAX_BYTES", len(mean_model))
    check_onnx(mean_model)
    with pytest.raises(EngineError, match=rf"it has {len(mean_model) + 1} bytes, over {len(mean_model)}"):
        check_onnx(mean_model + b"\x00")


def test_the_number_of_fields_is_bounded(monkeypatch):
    monkeypatch.setattr(onnx_wire, "MAX_FIELDS", 1000)
    unknown = b"\x98\x06\x01"  # field 99, varint
    check_onnx(model_bytes(unknown * 900))
    for data in (model_bytes(unknown * 1000), model_bytes(field(1, b"") * 1000)):
        with pytest.raises(EngineError, match="more than 1,000 fields"):
            check_onnx(data)


# -- subgraphs, by each way that a node may hold one


def one_graph(inner):
    return node_with(attribute(AttributeProto.GRAPH, "g", inner))


def several_graphs(inner):
    return node_with(attribute(AttributeProto.GRAPHS, "graphs", graph_of(), inner))


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan"])
@pytest.mark.parametrize("holder", [one_graph, several_graphs])
def test_subgraphs_are_bounded(holder, operator):
    def wrapped(graph):
        node = holder(graph)
        node.op_type = operator
        node.input.extend(["c", "c"])
        return graph_of(node, initializers=[inside("c")])

    graph = graph_of()
    for _ in range(MAX_SUBGRAPHS - 1):
        graph = wrapped(graph)
    check_onnx(standard(graph))
    with pytest.raises(EngineError, match=f"graphs are nested more than {MAX_SUBGRAPHS} deep"):
        check_onnx(standard(wrapped(graph)))


def test_subgraphs_in_functions_are_bounded():
    graph = graph_of()
    for _ in range(MAX_SUBGRAPHS + 1):
        graph = graph_of(one_graph(graph))
    with pytest.raises(EngineError, match=f"graphs are nested more than {MAX_SUBGRAPHS} deep"):
        check_onnx(standard(graph_of(), function("f", one_graph(graph))))


# -- how many nodes


def standard(graph, *functions):
    return model_of(graph, functions=list(functions)).SerializeToString()


def function(name, *nodes):
    return helper.make_function("local", name, [], [], list(nodes), [helper.make_opsetid("", 18)])


def call(name, domain="local"):
    return helper.make_node(name, [], [f"out{next(_NUMBERS)}"], domain=domain)


_NUMBERS = itertools.count()


def test_the_number_of_nodes_is_bounded():
    node = field(1, field(4, b"Constant"))
    check_onnx(model_bytes(node * MAX_NODES))
    with pytest.raises(EngineError, match="more than 100,000 nodes"):
        check_onnx(model_bytes(node * (MAX_NODES + 1)))


def test_functions_count_as_often_as_they_are_called():
    """Seventeen functions of two calls each: a kilobyte that a library would write out as 131,072 nodes."""

    def doubling(levels):
        functions = [function("f0", call("Constant", ""), call("Constant", ""))]
        functions += [function(f"f{i}", call(f"f{i - 1}"), call(f"f{i - 1}")) for i in range(1, levels)]
        return standard(graph_of(call(f"f{levels - 1}")), *functions)

    assert 2**16 < MAX_NODES < 2**17
    check_onnx(doubling(16))
    for levels in (17, 400):
        started = time.perf_counter()
        with pytest.raises(EngineError, match=r"more than 100,000 nodes, with its functions written out"):
            check_onnx(doubling(levels))
        assert time.perf_counter() - started < 1


@pytest.mark.parametrize("circle", [["f", "f"], ["f", "g", "f"], ["f", "g", "h", "f"]], ids="-".join)
@pytest.mark.parametrize("called", [True, False])
def test_functions_that_call_themselves_are_refused(circle, called):
    functions = [function(a, call("Constant", ""), call(b)) for a, b in itertools.pairwise(circle)]
    nodes = [call("f")] if called else []
    with pytest.raises(EngineError, match=r"its function local::[fgh] calls itself"):
        check_onnx(standard(graph_of(*nodes), *functions))


def test_a_function_that_is_called_in_two_ways_is_no_circle():
    check_onnx(
        standard(
            graph_of(call("f"), call("h")),
            function("h", call("Constant", "")),
            function("g", call("h"), call("h")),
            function("f", call("g"), call("h"), call("g")),
        )
    )


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(EngineError, match="defines the function local::f twice"):
        check_onnx(standard(graph_of(), function("f"), function("f")))


# -- operators of other domains


@pytest.mark.parametrize("domain", ["com.microsoft", "local", "ai.onnx.contrib", "trt.plugins", "ai.onnx "])
def test_operators_of_other_domains_are_refused_unless_allowed_by_name(domain):
    places = {
        "graph": standard(graph_of(call("Gelu", domain))),
        "subgraph": standard(graph_of(one_graph(graph_of(call("Gelu", domain))))),
        "function": standard(graph_of(), function("f", call("Gelu", domain))),
    }
    for model in places.values():
        with pytest.raises(
            EngineError, match=f"holds the operator {domain}::Gelu, which is not one of ONNX's own"
        ) as caught:
            check_onnx(model)
        assert f"allow_operators=['{domain}::Gelu']" in caught.value.hint
        assert caught.value.exit_code == 4
        check_onnx(model, allow_operators=[f"{domain}::Gelu"])
        with pytest.raises(EngineError, match=f"{domain}::Gelu"):
            check_onnx(model, allow_operators=[f"{domain}::Relu", domain, "Gelu", "x::Gelu"])


@pytest.mark.parametrize("domain", sorted(onnx_scan.ONNX_DOMAINS))
def test_onnx_domains_are_the_standards_own(domain):
    assert domain in {schema.domain for schema in onnx.defs.get_all_schemas()} | {
        "ai.onnx",
        "ai.onnx.training",
    }
    check_onnx(standard(graph_of(call("Anything", domain))))


def test_the_last_of_two_domains_counts_as_for_any_parser():
    def node(*domains):
        return model_bytes(field(1, field(4, b"Constant") + b"".join(field(7, d) for d in domains)))

    parsed = onnx.load_from_string(node(b"", b"com.microsoft"))
    assert parsed.graph.node[0].domain == "com.microsoft"
    with pytest.raises(EngineError, match=r"com\.microsoft::Constant"):
        check_onnx(node(b"", b"com.microsoft"))
    check_onnx(node(b"com.microsoft", b""))


def test_large_weights_are_stepped_over():
    model = in_initializer(
        numpy_helper.from_array(np.zeros(25_000_000, np.float32), "large")
    ).SerializeToString()
    started = time.perf_counter()
    check_onnx(model)
    assert time.perf_counter() - started < 1  # reading 100 MB byte by byte takes many seconds


def test_any_damage_gives_a_typed_error_or_none(mean_model):
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(mean_model)
        for _ in range(generator.integers(1, 4)):
            data[generator.integers(len(data))] = generator.integers(256)
        with contextlib.suppress(EngineError):
            check_onnx(bytes(data[: generator.integers(1, len(data) + 1)]))
            continue
        refused += 1
    assert refused > 1000


# -- nodes that read what is not there: a reader of a library may run in circles, or crash


def node_of(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, **attributes)


def chain(*nodes, output="last"):
    """A model with the input ``image``, the initializer ``w`` and one output."""
    return standard(
        helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 3])],
            [inside("w")],
        )
    )


def test_nodes_in_their_order_pass():
    check_onnx(chain(node_of("Relu", ["image"], ["a"]), node_of("Clip", ["a", "", "w"], ["last", ""])))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node_of("Add", ["last", "w"], ["last"])], "'Add' reads 'last', which nothing before it writes"),
        (
            [node_of("Relu", ["b"], ["last"]), node_of("Relu", ["last"], ["b"])],
            "reads 'b', which nothing before",
        ),
        (
            [node_of("Relu", ["b"], ["last"]), node_of("Relu", ["image"], ["b"])],
            "reads 'b', which nothing before",
        ),
        (
            [node_of("Relu", ["image"], ["w"]), node_of("Relu", ["w"], ["last"])],
            "writes 'w', which is there already",
        ),
        ([node_of("Relu", ["image"], ["a"])] * 2, "writes 'a', which is there already"),
        ([node_of("Relu", ["image"], ["a"])], "nothing writes its output 'last'"),
        ([node_of("Conv", [], ["last"])], "'Conv' lacks an input that it needs"),
        ([node_of("Conv", ["image"], ["last"])], "'Conv' lacks an input that it needs"),
        ([node_of("Conv", ["image", ""], ["last"])], "'Conv' lacks an input that it needs"),
        ([node_of("Conv", ["image"], ["last"], domain="ai.onnx")], "'Conv' lacks an input that it needs"),
    ],
)
def test_nodes_that_lack_what_they_read_are_refused(nodes, message):
    with pytest.raises(EngineError, match=message):
        check_onnx(chain(*nodes))


@pytest.mark.parametrize("name", ["w", "a", "image", "inner"])
def test_a_subgraph_reads_what_stands_around_it(name):
    inner = graph_of(node_of("Identity", [name], ["y"]), initializers=[inside("inner")])
    holder = node_of("If", ["w"], ["last"], then_branch=inner)
    check_onnx(chain(node_of("Relu", ["image"], ["a"]), holder))
    if name == "a":
        with pytest.raises(EngineError, match="'Identity' reads 'a', which nothing before it writes"):
            check_onnx(chain(holder))


def test_many_subgraphs_among_many_names_take_little_time():
    rest = field(4, b"Constant") + field(5, field(6, b""))
    graph = b"".join(field(1, field(2, b"n%d" % i) + rest) for i in range(30_000))
    started = time.perf_counter()
    check_onnx(model_bytes(graph))
    assert time.perf_counter() - started < 10  # it is linear; a copy of the names for each would take minutes


def test_a_function_reads_its_own_inputs_alone():
    def made(name):
        opsets = [helper.make_opsetid("", 18)]
        return helper.make_function("local", "f", ["x"], ["y"], [node_of("Relu", [name], ["y"])], opsets)

    check_onnx(standard(graph_of(), made("x")))
    with pytest.raises(EngineError, match="'Relu' reads 'w', which nothing before it writes"):
        check_onnx(standard(graph_of(initializers=[inside("w")]), made("w")))


def test_a_node_without_an_operator_is_refused():
    with pytest.raises(EngineError, match="a node names no operator"):
        check_onnx(model_bytes(field(1, b"")))


@pytest.mark.parametrize("version", [-5, 0, 1001, 2**31, 2**62])
@pytest.mark.parametrize("place", ["IR", "opset", "second", "function"])
def test_versions_that_do_not_exist_are_refused(place, version):
    model = model_of(
        graph_of(), functions=[helper.make_function("l", "f", [], [], [], [helper.make_opsetid("", 18)])]
    )
    check_onnx(model.SerializeToString())
    if place == "IR":
        model.ir_version = version
    elif place == "opset":
        model.opset_import[0].version = version
    elif place == "second":
        model.opset_import.add(domain="ai.onnx.ml", version=version)
    else:
        model.functions[0].opset_import[0].version = version
    with pytest.raises(EngineError, match=f"its {'IR' if place == 'IR' else 'opset'} version is "):
        check_onnx(model.SerializeToString())


def test_two_graphs_are_refused():
    with pytest.raises(EngineError, match="it has several graphs"):
        check_onnx(model_bytes(b"") + field(7, b""))


def test_the_table_of_inputs_is_onnx_own():
    wanted = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in ONNX_DOMAINS:
            name = schema.name.encode()
            wanted[name] = min(wanted.get(name, schema.min_input), schema.min_input)
    here = {name: count for name, count in MINIMUM_INPUTS.items() if name in wanted}
    # What another version of onnx has besides, or has no more, may differ.
    assert here == {name: wanted[name] for name in here}
    assert len(here) > 150
